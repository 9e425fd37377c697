"""How commands show what they found: tables for people, JSON lines for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from handlers.cli.sanitize import as_json, plain

_QUIET: Final = 5.0
"""Seconds of work before a word of progress."""


def for_people(*, as_json: bool) -> bool:
    """Say whether a person reads stdout."""
    return not as_json and sys.stdout.isatty()


def tell(line: str) -> None:
    """Say something beside the data."""
    sys.stderr.write(plain(line) + "\n")


def tell_nobody(line: str) -> None:
    """Say nothing, where only data is wanted."""
    del line


class Progress:
    """Says now and then how far a long work is; nothing of a short one."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._said = time.monotonic()

    def at(self, done: int) -> None:
        """Say how much is done, if nothing was said for a while."""
        now = time.monotonic()
        if now - self._said >= _QUIET:
            self._said = now
            tell(f"{self._words.format(done)} …")


def write_json(found: Mapping[str, Any]) -> None:
    """Print one JSON line."""
    sys.stdout.write(as_json(found) + "\n")


def write_lines(lines: Sequence[str]) -> None:
    """Print lines for people."""
    sys.stdout.write("".join(f"{plain(line)}\n" for line in lines))


async def write_listed(
    entries: AsyncIterable[dict[str, Any]],
    titles: Sequence[str],
    row: Callable[[dict[str, Any]], Sequence[str]],
    none: str,
    *,
    as_json: bool,
) -> None:
    """Print entries as JSON as they come, or below `titles` for people; `none`: there are none."""
    people, rows = for_people(as_json=as_json), []
    async for entry in entries:
        if people:
            rows.append(row(entry))
        else:
            write_json(entry)
    if rows:
        write_lines(table(titles, rows))
    elif people:
        tell(none)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows below their titles, each column as wide as it must be; each row is one line."""
    cells = [list(titles), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(titles))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def fields(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is known of one thing, a name and a value a line; later lines are indented."""
    width = max((len(name) for name, _ in pairs), default=0)
    return [
        f"{name if first else '':<{width}}  {line}".rstrip()
        for name, value in pairs
        for first, line in _numbered(plain(value).splitlines() or ["-"])
    ]


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with what it counts; `many`: when an s does not make it more."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def indented(text: str, by: str = "  ") -> list[str]:
    """Return the lines of a text, each further in."""
    return [f"{by}{line}".rstrip() for line in plain(text).splitlines()]


def one_line(text: str) -> str:
    """Return the first line of a text, and a sign when there is more."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    if not lines:
        return "-"
    return lines[0].strip() + (" …" if len(lines) > 1 else "")


def local_time(text: str | None) -> str:
    """Return a time of the wire as the reader's clock has it."""
    if text is None:
        return "-"
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _numbered(lines: Sequence[str]) -> list[tuple[bool, str]]:
    return [(number == 0, line) for number, line in enumerate(lines)]
