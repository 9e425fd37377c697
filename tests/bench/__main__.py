"""`make bench`: measure workspaced and its alternatives at the same work on this machine.

Prints tables and the verdict on each goal; writes .bench/report.html and .bench/results.json.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.bench.cold import cold
from tests.bench.machine import described
from tests.bench.peer import CACHE, ROOT
from tests.bench.plan import QUICK_SYSTEMS, SYSTEMS, full, quick
from tests.bench.report import page
from tests.bench.runs import carry_out
from tests.bench.tables import tables


def main() -> int:
    """Measure, and print the results; return 0 even if goals are missed."""
    words = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    words.add_argument("--quick", action="store_true", help="two minutes instead of fifty")
    words.add_argument("--runs", type=int, default=3, help="how often, without --quick")
    words.add_argument(
        "--only", nargs="+", choices=[system.name for system in SYSTEMS], help="these systems"
    )
    asked = words.parse_args()
    usual = QUICK_SYSTEMS if asked.quick else SYSTEMS
    systems = [s for s in SYSTEMS if s.name in asked.only] if asked.only else usual
    plan = quick(systems) if asked.quick else full(systems, asked.runs)
    CACHE.mkdir(exist_ok=True)
    machine = described()
    results = carry_out(plan)
    starts = cold(plan.starts)
    found = tables(plan, results, starts, machine)
    for table in found:
        sys.stdout.write(table.text())
    kept = {
        "machine": machine,
        "starts": starts,
        "lines": results.lines,
        "not_run": results.not_run,
    }
    (CACHE / "results.json").write_text(json.dumps(kept, indent=1))
    report = CACHE / "report.html"
    report.write_text(page(plan, results, found, machine))
    sys.stdout.write(f"\n{report.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
