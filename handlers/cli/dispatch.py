"""Runs the command that the arguments name, and reports errors as one line and an exit status.

Exit status: 0 success, 1 failure, 2 wrong usage. Data goes to stdout, everything else to stderr. A
command's modules are imported when it runs, so that `--help` is fast.
"""

from __future__ import annotations

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

from handlers.cli.arguments import Command
from handlers.cli.command_table import command_parser
from handlers.cli.output import plain
from handlers.cli.standard_streams import (
    Unwritable,
    discard_stdout,
    prepare,
    report_stdout_errors,
    use_utf8,
)

if TYPE_CHECKING:
    from handlers.settings import Settings

_log = logging.getLogger(__name__)
_ADVICE: Final = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "this user's disk quota is used up",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "choose a place that is writable",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open (sysctl fs.file-max)",
    errno.ENOMEM: "the machine is out of memory",
}
"""Error number of the operating system -> advice for the user, for errors that may not name a file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    if argv is None:
        use_utf8()
    prepare()
    parser = command_parser()
    parsed = parser.parse_args(argv)
    if parsed.command is None:
        parser.print_help(sys.stderr)
        return 2
    command: Command = parsed.command(vars(parsed))
    if command.serves:
        from handlers.runtime.container_init import become_init_child  # noqa: PLC0415 — fast --help

        # The parent may have blocked signals. Children inherit that, and could not be stopped.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        become_init_child()
    try:
        with report_stdout_errors(required=not command.serves):
            return _run(command)
    except BrokenPipeError:  # the reader of stdout has closed it
        discard_stdout()
        return 1
    except Unwritable as error:
        discard_stdout()
        return _fail(f"can't write to stdout: {error}", 1)
    except KeyboardInterrupt:
        return 130


def _run(command: Command) -> int:
    from handlers.cli import logs  # noqa: PLC0415 — fast --help

    logs.configure(quiet=not command.serves)
    _check_tls_key_log()
    try:
        if command.reads_settings:
            return _run_with_settings(command)
        return int(load_function(command)(command) or 0)
    except TimeoutError as error:
        return _fail(str(error) or "a server did not answer in time", 1)
    except BrokenPipeError:
        raise
    except Exception as error:
        if (status := exit_status_of(error)) is not None:
            return _fail(str(error) or type(error).__name__, status)
        if isinstance(error, OSError) and (text := _describe_os_error(error)) is not None:
            return _fail(text, 1)
        raise


def _check_tls_key_log() -> None:
    """Drop SSLKEYLOGFILE if that file cannot be written.

    Python opens it for each TLS context, and aiohttp makes one when it is imported.
    """
    if not (path := os.environ.get("SSLKEYLOGFILE")):
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        del os.environ["SSLKEYLOGFILE"]
        _log.warning("SSLKEYLOGFILE is ignored: %s can't be written (%s)", path, error.strerror)


def exit_status_of(error: Exception) -> int | None:
    """Return the exit status of an error that a user can act on; None for any other exception."""
    from workspaced import WorkspacedError as ClientError  # noqa: PLC0415

    from bus import BusError  # noqa: PLC0415 — fast --help
    from handlers.errors import WorkspacedError  # noqa: PLC0415
    from statemachine.store import StoreUnavailableError  # noqa: PLC0415
    from statemachine.templates import TemplateError  # noqa: PLC0415

    if isinstance(error, WorkspacedError):
        return error.exit_status
    own = BusError | StoreUnavailableError | TemplateError | ClientError
    return 1 if isinstance(error, own) else None


def _run_with_settings(command: Command) -> int:
    from handlers.sandbox.processes import raise_file_limit  # noqa: PLC0415 — fast --help
    from handlers.settings import read_settings, unknown_variables  # noqa: PLC0415

    settings = read_settings(vars(command))
    for warning in unknown_variables(os.environ):
        _log.warning("%s", warning)
    if command.serves:
        raise_file_limit()
    with asyncio.Runner(loop_factory=_uvloop_factory() if command.serves else None) as runner:
        return runner.run(_call(command, settings))


async def _call(command: Command, settings: Settings) -> int:
    function = load_function(command)
    if command.serves:
        _tune_garbage_collector()
    status = function(command, settings)
    if inspect.isawaitable(status):
        status = await status
    return int(status or 0)


def load_function(command: Command | type[Command]) -> Callable[..., Any]:
    """Import and return the function that runs a command.

    It is called with the command and, if the command reads them, the settings. It returns the exit
    status, where None means 0, or an awaitable of it.
    """
    module, _, name = command.function.partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def _uvloop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of the faster event loop for servers, or None if it is not installed."""
    try:
        return import_module("uvloop").new_event_loop  # type: ignore[no-any-return]
    except ImportError:
        return None


def _tune_garbage_collector() -> None:
    """Exclude imported modules from collections, and collect less often.

    A batch makes thousands of short-lived values. With Python's defaults each of them is examined
    several times, and a full collection delays answers by tens of milliseconds.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _describe_os_error(error: OSError) -> str | None:
    """Return a one-line message for an error of the operating system; None if only a traceback helps."""
    advice = _ADVICE.get(error.errno or 0)
    if advice is None and error.filename is None:
        return None
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{error.strerror or error}" + ("" if advice is None else f"; {advice}")


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"workspaced: {plain(message)}\n")
    return status
