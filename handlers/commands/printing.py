"""How commands show what they found: tables for people, JSON lines for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

_SEQUENCES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What would move, colour or rename a terminal."""


def for_people(*, as_json: bool) -> bool:
    """Say whether a person reads stdout."""
    return not as_json and sys.stdout.isatty()


def tell(line: str) -> None:
    """Say something beside the data."""
    sys.stderr.write(line + "\n")


def tell_nobody(line: str) -> None:
    """Say nothing, where only data is wanted."""
    del line


def write_json(found: Mapping[str, Any]) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")


def write_lines(lines: Sequence[str]) -> None:
    """Print lines for people."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


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


def indented(text: str, by: str = "  ") -> list[str]:
    """Return the lines of a text, each further in."""
    return [f"{by}{line}".rstrip() for line in plain(text).splitlines()]


def plain(text: str) -> str:
    """Return a text with nothing in it that a terminal would obey: builds write what they like."""
    return _SEQUENCES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


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
