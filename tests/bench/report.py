"""The report as one HTML page with tables and plots, which needs no other files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

from tests.bench import plots
from tests.bench.plan import SYSTEMS, Plan
from tests.bench.runs import Results
from tests.bench.tables import Table

QUANTILES = (25, 50, 75, 90, 95, 99)
COLOURS = dict(zip((system.title for system in SYSTEMS), plots.COLOURS, strict=True))
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #202124 }
table { border-collapse: collapse; margin: .5rem 0; font-size: 13px }
td, th { border-bottom: 1px solid #dadce0; padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top }
svg { max-width: 860px; width: 100%; display: block } svg text { font: 12px system-ui, sans-serif; fill: #3c4043 }
.grid { stroke: #e8eaed } .met { color: #188038 } .missed { color: #c5221f; font-weight: 600 }
.scroll { overflow-x: auto } .note { color: #5f6368; font-size: 13px }
"""


def page(plan: Plan, results: Results, found: Sequence[Table], machine: dict[str, Any]) -> str:
    """Return the page as HTML."""
    goals, *others = reversed(found)
    words = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, fdatasync p50 {machine['fsync_p50_us']} µs. Medians of the runs, from "
        f"least to most in brackets; all ratios are of this one run ({plan.name})."
    )
    body = [
        "<h1>workspaced, measured</h1>",
        f"<p>{escape(words)}</p>",
        _table(goals),
        *_plots(results),
        *(_table(table) for table in reversed(others)),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>workspaced, measured</title>'
        f"<style>{STYLE}</style>{''.join(body)}</html>\n"
    )


def _plots(results: Results) -> list[str]:
    found = []
    scale = {system.title: points for system in SYSTEMS if (points := _scale(results, system.name))}
    if scale:
        found.append("<h2>Throughput against chats</h2>")
        found.append(plots.lines(scale, COLOURS, "chats at once", "chats a second"))
    latency = {
        system.title: points for system in SYSTEMS if (points := _latency(results, system.name))
    }
    if latency:
        found.append("<h2>Ready fact to the caller's hands, light load</h2>")
        marks = {_rarity(q): f"p{q}" for q in QUANTILES}
        found.append(plots.lines(latency, COLOURS, "percentile of calls", "ms", marks))
    cpu = {system.title: parts for system in SYSTEMS if (parts := _cpu(results, system.name))}
    if cpu:
        size = max(line["chats"] for line in results.lines if line["measure"] == "throughput")
        found.append(f"<h2>CPU, up to {size:,} chats at once</h2>")
        few = {name: parts for name, parts in cpu.items() if sum(parts.values()) < 6}
        many = {name: parts for name, parts in cpu.items() if name not in few}
        found += [plots.bars(part, "CPU s per 1,000 chats") for part in (few, many) if part]
    return found


def _scale(results: Results, system: str) -> list[tuple[float, float]]:
    sizes = sorted({line["chats"] for line in results.of(system, "throughput")})
    return [
        (
            size,
            statistics.median(
                line["chats_s"] for line in results.of(system, "throughput", chats=size)
            ),
        )
        for size in sizes
    ]


def _latency(results: Results, system: str) -> list[tuple[float, float]]:
    lines = results.of(system, "latency")
    if not lines:
        return []
    return [
        (_rarity(q), statistics.median(line["ready_ms"][f"p{q}"] for line in lines))
        for q in QUANTILES
    ]


def _rarity(quantile: int) -> float:
    """Return N such that one in N calls exceeds the quantile; the axis shows this number."""
    return 100 / (100 - quantile)


def _cpu(results: Results, system: str) -> dict[str, float]:
    lines = results.of(system, "throughput")
    if not lines:
        return {}
    largest = [line for line in lines if line["chats"] == max(one["chats"] for one in lines)]
    return {
        name: statistics.median(line["of_per_1000"][name] for line in largest)
        for name in largest[0]["of_per_1000"]
    }


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        f"<tr>{''.join(f'<td{_kind(cell)}>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
        f"{note}"
    )


def _kind(cell: str) -> str:
    return f' class="{cell}"' if cell in ("met", "must met", "missed", "goal missed") else ""
