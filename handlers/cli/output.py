"""Output of the commands: tables for people, JSON lines for programs, notes on stderr.

`rich` draws for terminals and is imported only there. Everything printed goes through `plain` or `as_json`
first, so that no escape sequence in untrusted text reaches the terminal.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

_FIRST_PROGRESS: Final = 5.0
"""Seconds before the first report of progress, and between reports."""
_UNWRAPPED: Final = 100_000
"""A width that no line reaches."""
STATE_STYLES: Final = {
    "ready": "green",
    "failed": "red",
    "building": "yellow",
    "agent_connecting": "yellow",
    "scripts_running": "yellow",
    "stopping": "yellow",
    "stopped": "dim",
    "none": "dim",
}
"""Colours of states in tables."""
_CSI: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
"""Whole CSI sequences. Of other sequences only the control characters are removed."""
_UNSEEN: Final = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    r"\ufff9-\ufffb\ud800-\udfff"
)
"""Control characters, characters that change the writing direction or end a line, surrogates."""
_CONTROLS: Final = re.compile(f"[{_UNSEEN}]")
_IN_JSON: Final = re.compile(r"[\x7f-\x9f" + _UNSEEN[len(r"\x00-\x08\x0b-\x1f\x7f-\x9f") :] + "]")
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode
"""One encoder for all lines; `json.dumps` would make one for each."""


def plain(text: str) -> str:
    """Remove from a text everything that a terminal would interpret, except newlines and tabs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", _CSI.sub("", text))


def as_json(found: Any, *, indent: int | None = None) -> str:
    """Return JSON in which characters that a terminal would interpret are escaped."""
    text = (
        _ENCODE(found) if indent is None else json.dumps(found, indent=indent, ensure_ascii=False)
    )
    if text.isascii() and "\x7f" not in text:
        return text  # JSON has escaped the other control characters
    return _IN_JSON.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def for_people(*, as_json: bool) -> bool:
    """Return whether to print for a person: stdout is a terminal, and --json was not given."""
    return not as_json and sys.stdout.isatty()


def note(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(plain(line) + "\n")


def no_note(line: str) -> None:
    """Print nothing: the alternative to `note` with --json."""
    del line


class Progress:
    """Reports on stderr how far a long task is; a short task reports nothing."""

    def __init__(self, text: str) -> None:
        """Report in words: `text` has a `{}` for the number."""
        self._text = text
        self._last = time.monotonic()

    def at(self, done: int) -> None:
        """Report how much is done, unless the last report is recent."""
        now = time.monotonic()
        if now - self._last >= _FIRST_PROGRESS:
            self._last = now
            note(f"{self._text.format(done)} …")


def write_json(found: Mapping[str, Any]) -> None:
    """Print one line of JSON."""
    sys.stdout.write(as_json(found) + "\n")


def write_lines(lines: Sequence[str]) -> None:
    """Print lines for people."""
    sys.stdout.write("".join(f"{plain(line)}\n" for line in lines))


async def write_entries(
    entries: AsyncIterable[Mapping[str, Any]],
    titles: Sequence[str],
    row: Callable[[Mapping[str, Any]], Sequence[str]],
    *,
    none: str,
    as_json: bool,
) -> None:
    """Print each entry as JSON as it comes, or for people all of them as a table.

    `row` returns the cells of an entry. `none` is printed for people if there are no entries.
    """
    people, rows = for_people(as_json=as_json), []
    async for entry in entries:
        if people:
            rows.append(row(entry))
        else:
            write_json(entry)
    if rows:
        write_table(titles, rows)
    elif people:
        note(none)


def write_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for people. Each row is one line; longer texts are cut at their first line."""
    from rich.text import Text  # noqa: PLC0415 — only for terminals

    cells: list[list[Text]] = [[Text.assemble((title, "bold")) for title in titles]]
    for row in rows:
        cells.append([])
        for title, value in zip(titles, row, strict=True):
            text = one_line(value)
            style = STATE_STYLES.get(text.partition(":")[0], "") if title == "STATE" else ""
            cells[-1].append(Text.assemble((text, style)))  # the padding has no style
    _write_grid(cells)


def write_fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values for people, one pair a line; more lines of a value are indented."""
    from rich.text import Text  # noqa: PLC0415 — only for terminals

    _write_grid(
        [
            [Text(name, style="bold"), Text(plain(value).rstrip("\n") or "-")]
            for name, value in pairs
        ]
    )


def _write_grid(rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns, never wrapped, so that ids can be copied and lines be searched."""
    from rich.console import Console  # noqa: PLC0415 — only for terminals
    from rich.table import Table  # noqa: PLC0415

    grid = Table.grid(padding=(0, 2, 0, 0))
    for cells in rows:
        grid.add_row(*cells)
    console = Console(file=sys.stdout, width=_UNWRAPPED, height=1)
    with console.capture() as captured:
        console.print(grid)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().split("\n")[:-1]))


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun; `many` is the plural if it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def indented(text: str, by: str = "  ") -> list[str]:
    """Return the sanitized lines of a text, indented."""
    return [f"{by}{line}".rstrip() for line in plain(text).splitlines()]


def one_line(text: str) -> str:
    """Return the first line of a text that is not blank, with an ellipsis if there are more."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    if not lines:
        return "-"
    return lines[0].strip() + (" …" if len(lines) > 1 else "")


def duration(seconds: float | None) -> str:
    """Return a time for people, such as `4 m 12 s`."""
    if seconds is None:
        return "-"
    if seconds < 10:  # noqa: PLR2004 — a digit that is worth reading
        return f"{max(seconds, 0.0):.1f} s"
    units = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
    whole = round(seconds)
    for (large, name), (small, less) in pairwise(units):
        if whole >= large:
            return f"{whole // large} {name} {whole % large // small} {less}"
    return f"{whole} s"


def size(number: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:  # noqa: PLR2004 — the next unit
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def local_time(text: str | None) -> str:
    """Return an RFC 3339 time in the local time zone."""
    if text is None:
        return "-"
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
