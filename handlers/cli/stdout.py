"""Stdout that tells its own failures from all others, as when a disk is full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast


class Unwritable(Exception):
    """Stdout does not take what a command prints; the message says why."""


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
