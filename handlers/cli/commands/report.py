"""`workspaced report`: one HTML file about event logs: how long phases took, what failed, and the slowest builds.

The page holds everything that it shows, loads nothing and runs nothing. Every text of a log is escaped, also in the plots,
which are SVG.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappush, heappushpop
from html import escape
from statistics import median
from typing import Any, Final

from handlers.app import store_from_settings
from handlers.cli.command_table.event_logs import Report
from handlers.cli.commands.replay import log_entries, log_lines
from handlers.cli.output import Progress, counted, duration, note, plain, write_json
from handlers.settings import Settings

SLOWEST: Final = 25
"""The builds in the table of the slowest."""
MOST_TEMPLATES: Final = 8
"""The templates that have a line of their own in a plot; the others share one."""
BUCKETS: Final = 60
"""The points of a line."""
MOST_REASONS: Final = 12
_OTHERS: Final = "other templates"
_ELSEWHERE: Final = "made elsewhere"
_PHASES: Final = {
    "queued": "waiting for a provisioner",
    "building": "start builds",
    "agent": "waiting for the agent",
    "scripts": "startup scripts",
    "stopping": "stop and delete builds",
}
_STATE_PHASES: Final = {"agent_connecting": "agent", "scripts_running": "scripts"}
_COLOURS: Final = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#e69f00", "#56b4e9", "#8d6e63", "#7e57c2", "#808080"),
)
"""Colours that people with any colour vision can tell apart; the last one is for other templates."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 880, 240, 60, 24, 10
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #6b6b6b; --line: #d5d5d5; --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #a0a0a0; --line: #444; --paper: #161616; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } p, caption { color: var(--soft) }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
table { border-collapse: collapse; width: 100%; margin-top: .6rem; overflow-wrap: anywhere }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem }
"""


@dataclass(slots=True)
class _Build:
    template: str
    number: int
    transition: str
    requested_at: float | None
    begun_at: float | None = None


@dataclass(slots=True)
class _Series:
    """When phases ended, in seconds since 1970, and how many seconds they took."""

    ends: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("d"))

    def add(self, end: float, seconds: float) -> None:
        self.ends.append(end)
        self.seconds.append(max(seconds, 0.0))


@dataclass(slots=True)
class _Chat:
    """The builds and the present state of one chat, collected from its log."""

    builds: dict[str, _Build] = field(default_factory=dict)
    template: str = _ELSEWHERE
    entered_at: float = 0.0


@dataclass(order=True, frozen=True, slots=True)
class _Slow:
    seconds: float
    chat_id: str
    number: int
    transition: str
    template: str
    end: float


@dataclass(slots=True)
class LogFigures:
    """The figures of event logs, taken entry by entry."""

    entries: int = 0
    chats: dict[str, _Chat] = field(default_factory=dict)
    phases: dict[str, dict[str, _Series]] = field(default_factory=dict)
    """Phase -> template -> durations."""
    reasons: Counter[str] = field(default_factory=Counter)
    slowest: list[_Slow] = field(default_factory=list)
    """A heap."""
    builds: int = 0
    failed: int = 0

    def take(self, entry: Mapping[str, Any]) -> None:
        """Take the next entry of a chat's log. Raises ValueError if it is none."""
        try:
            self._take(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an entry of an event log: {error!r}") from error

    def _take(self, entry: Mapping[str, Any]) -> None:
        event, at = entry["event"], datetime.fromisoformat(entry["at"]).timestamp()
        self.entries += 1
        chat = self.chats.setdefault(event["subject"], _Chat())
        name, data = event["type"].removeprefix("workspaced.").rpartition(".v")[0], event["data"]
        if entry["outcome"] not in ("repeat", "foreign", "stale", "ignored"):
            self._take_build(event["subject"], chat, name, data, at)
        before, after = entry["state_before"], entry["state_after"]
        if before == after:
            return
        if (phase := _STATE_PHASES.get(before)) is not None and chat.entered_at:
            self._add(phase, chat.template, at, at - chat.entered_at)
        chat.entered_at = at
        if after == "failed":
            self.reasons[_reason(name, data, before)] += 1

    def _take_build(
        self, chat_id: str, chat: _Chat, name: str, data: Mapping[str, Any], at: float
    ) -> None:
        if name == "build_requested":
            template = (data.get("template") or {}).get("name", _ELSEWHERE)
            chat.template = template
            build = _Build(template, data["build_number"], data["transition"], at)
            chat.builds[data["build_id"]] = build
        elif name == "build_started":
            known = chat.builds.setdefault(
                data["build_id"], _Build(_ELSEWHERE, data["build_number"], data["transition"], None)
            )
            if known.begun_at is None:
                known.begun_at = at
                if known.requested_at is not None:
                    self._add("queued", known.template, at, at - known.requested_at)
        elif name in ("build_succeeded", "build_failed", "build_canceled"):
            ended = chat.builds.pop(data["build_id"], None)
            if ended is None or ended.begun_at is None:
                return
            self.builds += 1
            self.failed += name == "build_failed"
            if name != "build_succeeded":
                return
            took = at - ended.begun_at
            phase = "building" if ended.transition == "start" else "stopping"
            self._add(phase, ended.template, at, took)
            slow = _Slow(took, chat_id, ended.number, ended.transition, ended.template, at)
            if len(self.slowest) < SLOWEST:
                heappush(self.slowest, slow)
            else:
                heappushpop(self.slowest, slow)

    def _add(self, phase: str, template: str, end: float, seconds: float) -> None:
        self.phases.setdefault(phase, {}).setdefault(template, _Series()).add(end, seconds)


def _reason(name: str, data: Mapping[str, Any], before: str) -> str:
    """Return why a chat failed, as words that group alike failures."""
    if name == "build_failed":
        code = data.get("error_code")
        return f"the build failed: {code}" if code else "the build failed"
    words = {
        "build_canceled": "the build was canceled",
        "build_cancel_requested": "the build was canceled",
        "deadline_passed": f"the limit of {before} passed",
        "agent_lifecycle": "the startup scripts failed",
        "agent_exited": "the agent ended",
        "build_succeeded": "no agent can be chosen",
        "fact_rejected": "a fact could not be accepted",
    }
    return words.get(name, name.replace("_", " "))


async def report(command: Report, settings: Settings) -> int:
    """Write the report; return 1 if the file is no event log."""
    figures = LogFigures()
    if command.file is not None:
        try:
            with log_lines(command.file) as lines:
                for number, entry in log_entries(lines):
                    try:
                        figures.take(entry)
                    except ValueError as error:
                        raise ValueError(f"line {number}: {error}") from error
        except (OSError, ValueError) as error:
            what = getattr(error, "strerror", None) or error
            note(
                f"workspaced: {command.file}: {what}; FILE is an event log that `workspaced events` has printed, "
                "and --out names the report"
            )
            return 1
    else:
        progress = Progress("{} entries")
        async with store_from_settings(settings) as store:
            async for _, stored in store.audit.logs():
                figures.take(stored)
                progress.at(figures.entries)
    command.out.write_text(page(figures, datetime.now(UTC)), encoding="utf-8")
    write_json({"file": str(command.out), "entries": figures.entries, "builds": figures.builds})
    return 0


# -- the page -------------------------------------------------------------------------------------


def page(figures: LogFigures, now: datetime) -> str:
    """Return the report as HTML."""
    chats, builds = counted(len(figures.chats), "chat"), counted(figures.builds, "build")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>workspaced: {builds}</title><style>{_STYLE}</style></head><body>",
        "<h1>Builds of workspaced</h1>",
        (
            f"<p>{counted(figures.entries, 'entry', 'entries')} of the event logs of {chats}: {builds}, {figures.failed} "
            f"failed. Written {_time(now.timestamp())} UTC.</p>"
        ),
    ]
    for phase, title in _PHASES.items():
        if (series := figures.phases.get(phase)) is not None:
            parts += [f"<h2>How long: {escape(title)}</h2>", *_durations(title, series)]
    parts += ["<h2>Failures by reason</h2>", *_reasons(figures.reasons)]
    parts += ["<h2>Slowest builds</h2>", *_slowest(sorted(figures.slowest, reverse=True))]
    return "\n".join([*parts, "</body></html>", ""])


def _durations(title: str, found: Mapping[str, _Series]) -> Iterator[str]:
    """Yield a plot of medians over time by template, its legend, and a table."""
    ranked = sorted(found, key=lambda name: (-len(found[name].ends), name))
    shown = {name: found[name] for name in ranked[:MOST_TEMPLATES]}
    if rest := ranked[MOST_TEMPLATES:]:
        others = shown[_OTHERS] = _Series()
        for name in rest:
            others.ends.extend(found[name].ends)
            others.seconds.extend(found[name].seconds)
    first = min(min(series.ends) for series in shown.values())
    last = max(max(series.ends) for series in shown.values())
    lines = {name: _line(series, first, last) for name, series in shown.items()}
    yield from _plot(title, lines, first, last)
    yield '<ul class="legend">'
    for name, colour in zip(lines, _COLOURS, strict=False):
        yield f'<li><span class="key" style="background:{colour}"></span>{_text(name)}</li>'
    yield "</ul><table><thead><tr><th>template</th>"
    yield "".join(f'<th class="n">{name}</th>' for name in ("count", "median", "90 %", "longest"))
    yield "</tr></thead><tbody>"
    for name, series in shown.items():
        ordered = sorted(series.seconds)
        cells = [
            str(len(ordered)),
            duration(median(ordered)),
            duration(ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]),
            duration(ordered[-1]),
        ]
        yield f"<tr><td>{_text(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
    yield "</tbody></table>"


def _line(series: _Series, first: float, last: float) -> list[tuple[float, float, int]]:
    """Return (time, median, count) for each part of the period in which phases ended."""
    parts: dict[int, list[int]] = {}
    width = (last - first) / BUCKETS or 1.0
    for number, end in enumerate(series.ends):
        parts.setdefault(min(BUCKETS - 1, int((end - first) / width)), []).append(number)
    return [
        (
            median(series.ends[number] for number in numbers),
            median(series.seconds[number] for number in numbers),
            len(numbers),
        )
        for _, numbers in sorted(parts.items())
    ]


def _plot(
    title: str, lines: Mapping[str, Sequence[tuple[float, float, int]]], first: float, last: float
) -> Iterator[str]:
    top = max(seconds for line in lines.values() for _, seconds, _ in line) or 1.0

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 10) * (
            (at - first) / (last - first) if last > first else 0.5
        )

    def y(seconds: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - seconds / top)

    label = f"Median over time: {title}"
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(label)}">'
    for share in (0.0, 0.5, 1.0):
        at = y(share * top)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>'
        yield f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{duration(share * top)}</text>'
    ends = ((first, "start"), (last, "end")) if last > first else ((first, "middle"),)
    for at, anchor in ends:
        yield f'<text x="{x(at):.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{_time(at)}</text>'
    for (name, line), colour in zip(lines.items(), _COLOURS, strict=False):
        points = " ".join(f"{x(at):.1f},{y(seconds):.1f}" for at, seconds, _ in line)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        for at, seconds, count in line:
            about = f"{name}, {_time(at)}: {duration(seconds)}, the median of {count}"
            yield (
                f'<circle cx="{x(at):.1f}" cy="{y(seconds):.1f}" r="2.6" fill="{colour}">'
                f"<title>{_text(about)}</title></circle>"
            )
    yield "</svg>"


def _reasons(reasons: Counter[str]) -> Iterator[str]:
    if not reasons:
        yield "<p>No chat failed.</p>"
        return
    rows = reasons.most_common(MOST_REASONS)
    if rest := reasons.total() - sum(count for _, count in rows):
        rows.append(("other reasons", rest))
    most = rows[0][1]
    yield f'<svg viewBox="0 0 {_WIDTH} {24 * len(rows)}" role="img" aria-label="Failures by reason">'
    for number, (reason, count) in enumerate(rows):
        top, width = 24 * number, 500 * count / max(most, count)
        yield f'<text x="300" y="{top + 16}" text-anchor="end">{_text(reason[:48])}</text>'
        yield f'<rect x="310" y="{top + 4}" width="{width:.1f}" height="16" fill="{_COLOURS[1]}"/>'
        yield f'<text x="{316 + width:.1f}" y="{top + 16}">{count}</text>'
    yield "</svg>"
    yield '<table><thead><tr><th>reason</th><th class="n">chats</th></tr></thead><tbody>'
    yield from (f'<tr><td>{_text(reason)}</td><td class="n">{n}</td></tr>' for reason, n in rows)
    yield "</tbody></table>"


def _slowest(builds: Iterable[_Slow]) -> Iterator[str]:
    yield '<table><thead><tr><th class="n">took</th><th>template</th><th>build</th><th>chat</th><th>ended (UTC)</th>'
    yield "</tr></thead><tbody>"
    for one in builds:
        cells = (one.template, f"{one.number} {one.transition}", one.chat_id, _time(one.end))
        shown = "".join(f"<td>{_text(str(cell))}</td>" for cell in cells)
        yield f'<tr><td class="n">{duration(one.seconds)}</td>{shown}</tr>'
    yield "</tbody></table>"


def _text(text: str) -> str:
    """Return a text of a log for HTML: escaped, without control characters and on one line."""
    return escape(" ".join(plain(text).split()), quote=True)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
