"""The results as tables, for the terminal and for the page of report.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import goals
from tests.bench.figures import brief, spread
from tests.bench.plan import SYSTEMS, Plan
from tests.bench.runs import Line, Results

PEERS = Path(__file__).with_name("peers")


@dataclass(frozen=True)
class Table:
    """A table with a heading."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def text(self) -> str:
        """Return the table as text for a terminal."""
        lines = [list(self.head), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        if any(self.head):
            lines.insert(1, ["-" * width for width in widths])
        else:
            del lines[0]
        body = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        return f"\n{self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


def tables(
    plan: Plan,
    results: Results,
    starts: dict[str, list[float]],
    keys: list[float],
    machine: dict[str, Any],
) -> list[Table]:
    """Return all tables, the goals last."""
    judged = goals.verdicts(plan, results, starts, keys)
    found = [
        _latency(results),
        *_throughputs(results),
        _twice(results),
        _idle(results),
        _waiting(results),
        _age(results),
        _starts(results, starts),
        _flows(results),
        _not_run(results),
        _machine(machine, results),
        Table("Goals", goals.HEAD, [verdict.cells() for verdict in judged]),
    ]
    return [table for table in found if table.rows]


def over(lines: list[Line], pick: Callable[[Line], float | None]) -> str:
    """Return median and range over runs."""
    values = [value for line in lines if (value := pick(line)) is not None]
    found = spread(values)
    return "" if found is None else str(found)


def _wrong(lines: list[Line]) -> str:
    return "; ".join(sorted({line["verify"] for line in lines if line["verify"] != "ok"})) or "ok"


def _latency(results: Results) -> Table:
    rows = []
    for system in SYSTEMS:
        for measure, load in (("latency", "light"), ("half", "half of full")):
            if lines := results.of(system, measure):
                of = [
                    over(lines, lambda line, k=kind, q=quantile: line[k][q])
                    for kind in ("ready_ms", "overhead_ms")
                    for quantile in ("p50", "p99")
                ]
                rate = over(lines, lambda line: line["rate"])
                number = sum(line["ready_ms"]["n"] for line in lines)
                rows.append([system.title, load, rate, *of, f"{number:,}", _wrong(lines)])
    head = (
        "",
        "load",
        "chats/s",
        "ready p50",
        "ready p99",
        "overhead p50",
        "overhead p99",
        "n",
        "verified",
    )
    return Table(
        "Latency, ms: median of the runs, and from least to most",
        head,
        rows,
        "ready: last fact handed over to the caller holding its result. overhead: the whole call less "
        "its pauses.",
    )


def _throughputs(results: Results) -> Iterator[Table]:
    sizes = sorted({line["chats"] for line in results.lines if line["measure"] == "throughput"})
    for size in sizes:
        rows = []
        for system in SYSTEMS:
            lines = results.of(system, "throughput", chats=size)
            if not lines:
                if results.of(system, "throughput") and size > system.largest:
                    rows.append([system.title, f"not run: {system.why}", *[""] * 7])
                continue
            keys = ("events_s", "chats_s", "cpu_per_1000", "load_per_1000", "writes_per_chat")
            of = [over(lines, lambda line, key=key: line[key]) for key in keys]
            rows.append([system.title, *of, _parts(lines), _mib(lines[-1]), _wrong(lines)])
        head = (
            "",
            "events/s",
            "chats/s",
            "CPU s",
            "load's CPU s",
            "writes/chat",
            "CPU s of",
            "MiB",
            "verified",
        )
        yield Table(
            f"Throughput, {size:,} chats at once (CPU for 1,000 chats)",
            head,
            rows,
            "CPU leaves the load generator out, which has a column of its own; workspaced's caller is "
            "part of it. Its create is judged, named and sent as a job, where the sketch inserts a row.",
        )


def _parts(lines: list[Line]) -> str:
    parts = {
        name: [line["of_per_1000"][name] for line in lines] for name in lines[0]["of_per_1000"]
    }
    medians = {name: found.median for name, values in parts.items() if (found := spread(values))}
    return " ".join(f"{name} {brief(cpu)}" for name, cpu in medians.items() if cpu >= 0.005)


def _mib(line: Line) -> str:
    return " ".join(f"{name} {mib:.0f}" for name, mib in line["mib"].items())


def _twice(results: Results) -> Table:
    rows = [
        [system.title, f"{sum(line['chats'] for line in lines)} chats", _wrong(lines)]
        for system in SYSTEMS
        if (lines := results.of(system, "twice"))
    ]
    return Table("Each event handed over twice, applied once", ("", "", "verified"), rows)


def _idle(results: Results) -> Table:
    rows = []
    for system in SYSTEMS:
        if not (lines := results.of(system, "idle")):
            continue
        first = lines[0]
        cells = [system.title, f"{first['chats']:,}", f"{first['seconds']} s"]
        cells += [over(lines, lambda line, k=key: line[k]["cpu"]) for key in ("with", "without")]
        cells.append(over(lines, lambda line: line["more_cpu"]))
        for key in ("transactions", "asked"):
            pair = [
                over(lines, lambda line, w=w, k=key: line[w].get(k)) for w in ("with", "without")
            ]
            cells.append(" / ".join(pair) if any(pair) else "")
        rows.append(cells)
    head = (
        "",
        "calls",
        "for",
        "CPU s",
        "CPU s, none waiting",
        "more",
        "transactions, with / none",
        "connections used",
    )
    return Table(
        "Waiting: nothing happens",
        head,
        rows,
        "Transactions are those of the whole database, autovacuum's and our own look at the counters "
        "included; connections used: those of the product that made any query, by pg_stat_activity.",
    )


def _waiting(results: Results) -> Table:
    rows = []
    for line in results.of("product-always", "waiting"):
        rows += [
            [f"{line['calls']:,} calls", "made over the wire", f"{line['real']:,}"],
            [
                "",
                "these made in, the others copied in",
                f"{line['made_s']} s, {line['copied_s']} s",
            ],
            ["", f"answers when {line['few_ms']['n']} wait, p50 / p99", _both(line["few_ms"])],
            ["", "the first answer with them", f"{brief(line['first_ms']['p50'])} ms"],
            ["", f"{line['some_ms']['n']} more answers, p50 / p99", _both(line["some_ms"])],
            ["", "new calls before, p50 / p99", _both(line["before_ms"])],
            ["", "new calls beside them, p50 / p99", _both(line["after_ms"])],
        ]
        for role, mib in line["resident"]["with"].items():
            before = line["resident"]["without"][role]
            rows.append(["", f"{role} resident, before and with them", f"{before}, {mib} MiB"])
        for when, words in (("without", "before"), ("with", "with them")):
            starts = line["starts"][when]
            for key, what, unit in (
                ("ready_s", "ready after", "s"),
                ("rest_s", "at rest after", "s"),
                ("cpu_s", "CPU of all processes until then", "s"),
                ("resident", "resident", "MiB"),
            ):
                found = over(starts, lambda start, key=key: start[key])
                rows.append(["", f"one more worker {words}: {what}", f"{found} {unit}"])
        rows.append(["", "memory at the end, MiB", _mib(line)])
    return Table("Very many calls wait", ("", "", ""), rows)


def _both(found: dict[str, float]) -> str:
    return f"{brief(found['p50'])} / {brief(found['p99'])} ms"


def _age(results: Results) -> Table:
    rows = []
    for line in results.of("product-always", "aged"):
        for age in ("new", "old"):
            title = (
                "empty" if age == "new" else f"{line['rows']:,} log rows, {line['chats']:,} chats"
            )
            lines = line[age]
            of = [
                over(lines, lambda one, q=q: one["latency"]["ready_ms"][q]) for q in ("p50", "p99")
            ]
            rate = over(lines, lambda one: one["throughput"]["chats_s"])
            events = over(lines, lambda one: one["throughput"]["events_s"])
            rows.append([title, *of, events, rate])
        rows.append([f"aged in {line['aging_s']} s to {line['gib']} GiB", *[""] * 4])
        rows.append([f"`up` ready on it: {spread(line['up_s'])} s", *[""] * 4])
    return Table("Age", ("database", "ready p50 ms", "ready p99 ms", "events/s", "chats/s"), rows)


def _starts(results: Results, starts: dict[str, list[float]]) -> Table:
    words = {
        "new": "`workspaced up` ready, new data directory",
        "used": "`workspaced up` ready, used data directory",
        "help": "`workspaced --help`",
    }
    rows = [[words[key], f"{spread(values)} s"] for key, values in starts.items() if values]
    rest = results.of("product-always", "rest")
    for role in ("worker", "gateway"):
        if rest:
            mib = over(rest, lambda line, role=role: line["resident"][role])
            rows.append([f"a {role} at rest, resident", f"{mib} MiB"])
    return Table("Cold start, and rest", ("", ""), rows)


def _flows(results: Results) -> Table:
    measured = {line["system"] for line in results.lines}
    peers = {system.peer: system.title for system in SYSTEMS if system.name in measured}
    peers.pop("product", None)
    rows = [[title, str(_lines_of_flow(peer))] for peer, title in peers.items()]
    return Table(
        "Lines of code for this flow",
        ("", "lines"),
        rows,
        "What a user writes, tables and SQL included; no failures, limits, rules or names, which "
        "workspaced has.",
    )


def _lines_of_flow(peer: str) -> int:
    """Count the lines of a peer's workflow between its marks, without blank lines and comments."""
    text = (PEERS / f"{peer}.py").read_text().splitlines()
    flow = text[text.index("# --- flow begin") + 1 : text.index("# --- flow end")]
    return sum(1 for line in flow if line.strip() and not line.strip().startswith("#"))


def _not_run(results: Results) -> Table:
    return Table("Not run", ("", "why"), [[*pair] for pair in results.not_run.items()])


def _machine(machine: dict[str, Any], results: Results) -> Table:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    rows = [
        ["cores, CPU", f"{machine['cores']}, {machine['cpu']}"],
        ["memory", f"{machine['memory_gib']} GiB"],
        [
            "write 8 KiB + fdatasync",
            f"p50 {machine['fsync_p50_us']} µs, p99 {machine['fsync_p99_us']} µs",
        ],
        ["one load generator", f"{machine['generator_s']:,} acknowledged messages/s at most"],
        ["load average at the beginning", ", ".join(map(str, machine["load_average"]))],
        ["kernel, Python", f"{machine['kernel']}, {machine['python']}"],
        ["versions", versions],
        ["commit", machine["commit"]],
        ["took", f"{results.seconds / 60:.1f} min"],
    ]
    return Table("The machine", ("", ""), rows)
