"""Makes stdin, stdout and stderr usable however the process was started.

They may be closed, full, or unable to encode a character. Failures to write to stdout become
`Unwritable`; failures to write to stderr are ignored.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final, TextIO, cast

_ESCAPES: Final = "workspaced.escapes"


def use_utf8() -> None:
    """Start this command again in Python's UTF-8 mode if the locale has another encoding.

    Paths, and the variables and output of builds, are UTF-8 whatever the locale of the user is.
    stdin, stdout and stderr keep the locale's encoding.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8":
        return
    stdout = sys.stdout or sys.stderr
    if stdout is not None:
        os.environ.setdefault("PYTHONIOENCODING", stdout.encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 — itself


class Unwritable(Exception):
    """A command cannot write to stdout; the text says why."""


def prepare() -> None:
    r"""Make the three streams usable; call it before anything opens a file or a socket.

    Opens closed descriptors on /dev/null, because the next socket would otherwise get such a number
    and be taken for a standard stream. Characters that the encoding of a stream lacks are written as
    `\\uXXXX`, which is also valid in JSON.
    """
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError as error:
        raise SystemExit(f"workspaced: {os.devnull}: {error.strerror}: a system needs it") from None
    while null <= 2:  # noqa: PLR2004 — 0, 1 and 2 are the standard streams
        null = os.dup(null)
    os.close(null)
    codecs.register_error(_ESCAPES, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPES)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 — for the whole process
    sys.stderr = cast("TextIO", _Stderr(sys.stderr))


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = (units[at : at + 2].hex() for at in range(0, len(units), 2))
    return "".join(f"\\u{pair}" for pair in pairs), error.end


@contextmanager
def report_stdout_errors(*, required: bool) -> Iterator[None]:
    """Raise failures to write to stdout as Unwritable while the block runs, and flush it at the end.

    A reader that has closed the pipe still raises BrokenPipeError. A closed stdout is an error only
    if stdout is `required`.
    """
    if sys.stdout is None:
        if required:
            raise Unwritable("it is closed; send it to a file, or to /dev/null")
        with Path(os.devnull).open("w", encoding="utf-8") as nothing, redirect_stdout(nothing):
            yield
        return
    with redirect_stdout(cast("TextIO", _Stdout(sys.stdout))):
        yield
        sys.stdout.flush()


def discard_stdout() -> None:
    """Send what is still buffered to /dev/null, since Python would report it again at its exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Stdout:
    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, text: str) -> int:
        """Write, or raise Unwritable."""
        try:
            return self._inner.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unwritable(error.strerror or str(error)) from error

    def flush(self) -> None:
        """Flush, or raise Unwritable."""
        try:
            self._inner.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unwritable(error.strerror or str(error)) from error


class _Stderr:
    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, text: str) -> int:
        """Write, and ignore a failure, which could be reported nowhere."""
        with suppress(OSError):
            return self._inner.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, and ignore a failure."""
        with suppress(OSError):
            self._inner.flush()
