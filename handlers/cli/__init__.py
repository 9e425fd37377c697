"""The command line `workspaced`; its commands are declared in `handlers.cli.command_table`."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, also if it is interrupted while it still imports."""
    try:
        from handlers.cli.dispatch import main as run  # noqa: PLC0415 — imports may be interrupted

        return run(argv)
    except KeyboardInterrupt:
        return 130
