"""Standard input, output and error of a process, whatever whoever started it made of them.

They may be closed, full, or unable to encode a character. Stdout reports its own failures as
`Unwritable`; a failure to write to stderr ends nothing.
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


class Unwritable(Exception):
    """Stdout does not take what a command prints; the message says why."""


def prepare() -> None:
    r"""Make the three streams usable; call it before anything opens a file or a socket.

    A closed descriptor is opened on /dev/null: the next socket would else get its number, and be
    taken for a standard stream. What an encoding lacks is written as `\\uXXXX`, also valid in JSON.
    """
    null = os.open(os.devnull, os.O_RDWR)
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
def told_apart(*, needed: bool) -> Iterator[None]:
    """Have what can't be written to stdout raised as Unwritable; all is written at the end.

    A reader that went stays BrokenPipeError. Who has no stdout at all may do without, unless it is
    `needed`.
    """
    if sys.stdout is None:
        if needed:
            raise Unwritable("it is closed; send it to a file, or to /dev/null")
        with Path(os.devnull).open("w", encoding="utf-8") as nothing, redirect_stdout(nothing):
            yield
        return
    with redirect_stdout(cast("TextIO", _Stdout(sys.stdout))):
        yield
        sys.stdout.flush()


def silence() -> None:
    """Let what was not written go nowhere: Python would complain of it once more at its end."""
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
        except OSError as no:
            raise Unwritable(no.strerror or str(no)) from no

    def flush(self) -> None:
        """Write what waits, or raise Unwritable."""
        try:
            self._inner.flush()
        except BrokenPipeError:
            raise
        except OSError as no:
            raise Unwritable(no.strerror or str(no)) from no


class _Stderr:
    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, text: str) -> int:
        """Write what can be written: nobody is left to tell of a failure."""
        with suppress(OSError):
            return self._inner.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits, if it can be written."""
        with suppress(OSError):
            self._inner.flush()
