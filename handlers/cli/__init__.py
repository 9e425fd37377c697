"""`workspaced …`: flags apart from what they start, so that `--help` is quick."""

from collections.abc import Sequence

from handlers.cli.words import ORGANIZATION, OWNER

__all__ = ["ORGANIZATION", "OWNER", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status, also when it is interrupted while it still imports."""
    try:
        from handlers.cli.dispatch import main as run  # noqa: PLC0415 — imports may be interrupted

        return run(argv)
    except KeyboardInterrupt:
        return 130
