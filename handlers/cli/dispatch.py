"""From words to work: starts the command, and turns failures into words and an exit status.

Exit status: 0 well, 1 failed, 2 wrong usage. Data goes to stdout, everything else to stderr. What a
command needs is imported when it is called.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from handlers.cli.flags import parser
from handlers.cli.sanitize import plain
from handlers.cli.standard_streams import Unwritable, prepare, silence, told_apart

if TYPE_CHECKING:
    from handlers.settings import Settings


_log = logging.getLogger(__name__)
_ADVICE: Final = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "this user's disk quota is used up",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "choose a place that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open (sysctl fs.file-max)",
    errno.ENOMEM: "the machine is out of memory",
}
"""What to do about refusals that may come without the name of a file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    prepare()
    words = parser()
    flags = words.parse_args(argv)
    if flags.command is None:
        words.print_help(sys.stderr)
        return 2
    if flags.serves:
        from handlers.container_init import become_init_child  # noqa: PLC0415 — quick --help

        # A parent may have blocked signals; children would inherit that, and nothing could be stopped.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        become_init_child()
    try:
        with told_apart(needed=not flags.serves):
            status = _run(flags)
    except BrokenPipeError:  # whoever read our output had enough
        silence()
        return 1
    except Unwritable as why:
        silence()
        return _fail(f"can't write to stdout: {why}", 1)
    except KeyboardInterrupt:
        return 130
    return status


def _run(flags: argparse.Namespace) -> int:
    from handlers.cli import logs  # noqa: PLC0415 — quick --help
    from handlers.errors import exit_status_of  # noqa: PLC0415
    from handlers.sandbox.processes import raise_file_limit  # noqa: PLC0415
    from handlers.settings import read_settings, unknown_variables  # noqa: PLC0415

    logs.configure(quiet=not flags.serves)
    if flags.command == "agent":
        from handlers.agent.__main__ import run_agent  # noqa: PLC0415 — each its own imports only

        return run_agent(flags.config)
    try:
        settings = read_settings(vars(flags))
        for warning in unknown_variables(os.environ):
            _log.warning("%s", warning)
        if flags.serves:
            raise_file_limit()
        with asyncio.Runner(loop_factory=_quick_loop() if flags.serves else None) as runner:
            return runner.run(_started(flags, settings))
    except TimeoutError as error:
        return _fail(str(error) or "no answer in time", 1)
    except OSError as no:
        if isinstance(no, BrokenPipeError) or (words := _refused_by_the_system(no)) is None:
            raise
        return _fail(words, 1)
    except Exception as error:
        if (status := exit_status_of(error)) is None:
            raise
        return _fail(str(error) or type(error).__name__, status)


def _refused_by_the_system(no: OSError) -> str | None:
    """Return a line about what the operating system refused; None if only a traceback can tell."""
    if no.errno in _ADVICE or no.filename is not None:
        where = "" if no.filename is None else f"{os.fsdecode(no.filename)}: "
        advice = _ADVICE.get(no.errno or 0)
        return f"{where}{no.strerror or no}" + ("" if advice is None else f"; {advice}")
    return None


def _quick_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the faster event loop for processes that serve, where it is installed."""
    try:
        return import_module("uvloop").new_event_loop  # type: ignore[no-any-return]
    except ImportError:
        return None


def _spare_the_collector() -> None:
    """Leave what was imported out of every later collection, and collect less often.

    A batch makes thousands of short-lived values: at Python's own pace each is looked at several times,
    and a full collection would hold up who waits for its answer by tens of milliseconds.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"workspaced: {plain(message)}\n")
    return status


COMMANDS: Final = {
    "up": ("handlers.up", "up"),
    "worker": ("handlers.roles", "worker"),
    "gateway": ("handlers.roles", "gateway"),
    "provisioner": ("handlers.roles", "provisioner"),
    "tool": ("handlers.cli.commands.tool", "call_tool"),
    "template push": ("handlers.cli.commands.template", "push"),
    "template list": ("handlers.cli.commands.template", "show"),
    "template versions": ("handlers.cli.commands.template", "versions"),
    "template activate": ("handlers.cli.commands.template", "activate"),
    "demo": ("handlers.demo.demo", "demo"),
    "chat list": ("handlers.cli.commands.chat", "show_all"),
    "chat show": ("handlers.cli.commands.chat", "show"),
    "workspace delete": ("handlers.cli.commands.workspace_delete", "delete"),
    "workspace orphans": ("handlers.cli.commands.orphans", "show"),
    "log": ("handlers.cli.commands.log", "show"),
    "events": ("handlers.cli.commands.events", "events"),
    "replay": ("handlers.cli.commands.replay", "replay"),
    "settings set": ("handlers.cli.commands.settings", "change"),
    "settings list": ("handlers.cli.commands.settings", "show"),
    "migrate": ("handlers.cli.commands.migrate", "run"),
    "credentials issue": ("handlers.cli.commands.credentials", "issue"),
    "credentials list": ("handlers.cli.commands.credentials", "show"),
    "credentials revoke": ("handlers.cli.commands.credentials", "revoke"),
    "nats-auth": ("handlers.cli.commands.nats_auth", "show"),
}
"""Command -> module and function, imported when it is called; see `called` for its arguments."""

_NAMES: Final = {
    "as_json": "json",
    "chat_id": "chat",
    "organization_id": "organization",
    "version_id": "version",
}
"""A parameter -> the flag that it is given, where their names differ."""


async def _started(flags: argparse.Namespace, settings: Settings) -> int:
    function, arguments = called(flags, settings)
    if flags.serves:
        _spare_the_collector()
    status = function(**arguments)
    if inspect.isawaitable(status):
        status = await status
    return int(status or 0)


def called(flags: argparse.Namespace, settings: Settings) -> tuple[Callable[..., Any], Any]:
    """Return a command's function, and what it asks for: `settings`, `flags`, or flags by name."""
    module, name = COMMANDS[flags.command]
    function = getattr(import_module(module), name)
    given = {**vars(flags), "flags": flags, "settings": settings}
    wanted = inspect.signature(function).parameters
    return function, {parameter: given[_NAMES.get(parameter, parameter)] for parameter in wanted}
