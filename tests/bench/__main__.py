"""`make bench`: measure workspaced and its alternatives at the same work on this machine.

Prints tables and the verdict on each goal; writes .bench/report.html and .bench/results.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from tests.bench import commands, ratios
from tests.bench.cold import cold
from tests.bench.machine import described
from tests.bench.peer import CACHE, ROOT
from tests.bench.plan import PARTS, QUICK_SYSTEMS, SYSTEMS, full, quick
from tests.bench.report import page
from tests.bench.runs import carry_out
from tests.bench.tables import Table, tables


def main() -> int:
    """Measure, and print the results.

    Return 0 even if goals are missed, but 1 if `--quick` finds workspaced worse than recorded.
    """
    asked = _arguments().parse_args()
    usual = QUICK_SYSTEMS if asked.quick else SYSTEMS
    systems = [s for s in SYSTEMS if s.name in asked.systems] if asked.systems else usual
    parts = [part for part in PARTS if part in asked.only] if asked.only else tuple(PARTS)
    plan = quick(systems, parts) if asked.quick else full(systems, asked.runs, parts)
    checked = asked.quick and ratios.comparable(plan)
    if asked.record and not checked:
        sys.stderr.write(
            "--record needs --quick with the systems product-always and sketch-always and the parts "
            "latency and throughput: make bench-quick ARGS=--record\n"
        )
        return 2
    CACHE.mkdir(exist_ok=True)
    machine = described()
    results = carry_out(plan)
    starts = cold(plan.starts)
    ran = commands.commands(*plan.commands)
    found = [*tables(plan, results, starts, ran.keys, machine)]
    if ran.rows:
        found.insert(-1, commands.table(ran))
    kept = {
        "machine": machine,
        "starts": starts,
        "commands": asdict(ran),
        "lines": results.lines,
        "not_run": results.not_run,
    }
    (CACHE / "results.json").write_text(json.dumps(kept, indent=1))
    report = CACHE / "report.html"
    report.write_text(page(plan, results, found, machine))
    measured = ratios.measured(plan, results)
    if asked.record and None not in measured.values():
        ratios.record(measured, machine)
    comparison = ratios.checks(measured, ratios.load()) if checked else []
    for table in (
        *found,
        Table("Ratios to the sketch", ratios.HEAD, [c.cells() for c in comparison]),
    ):
        sys.stdout.write(table.text() if table.rows else "")
    sys.stdout.write(f"\n{report.relative_to(ROOT)}\n")
    sys.stdout.flush()
    complaint = ratios.complaint(comparison)
    sys.stderr.write(complaint)
    return 1 if complaint else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three minutes instead of an hour")
    parser.add_argument("--runs", type=int, default=3, help="how often, without --quick")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        metavar="PART",
        help="these parts: " + "; ".join(f"{name} ({what})" for name, what in PARTS.items()),
    )
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=[system.name for system in SYSTEMS],
        metavar="SYSTEM",
        help="these systems: " + ", ".join(system.name for system in SYSTEMS),
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="with --quick: write the ratios to the sketch to tests/bench/ratios.json",
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
