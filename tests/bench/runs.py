"""Carries out a plan: each task runs in its own process, in the environment of its system."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tests.bench.cold import plain
from tests.bench.environments import NotInstalledError, environment
from tests.bench.peer import ROOT
from tests.bench.plan import Plan, System, Task

Line = dict[str, Any]
TASK_LIMIT = 3600


@dataclass
class Results:
    """The results of a plan."""

    lines: list[Line] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    """The systems, or measures of a system, that did not run, with the reason."""
    seconds: float = 0.0

    def of(self, system: System | str, measure: str, **words: Any) -> list[Line]:
        """Return the lines of a system's measure, one per run."""
        name = system if isinstance(system, str) else system.name
        return [
            line
            for line in self.lines
            if (line["system"], line["measure"]) == (name, measure)
            and all(line.get(key) == value for key, value in words.items())
        ]


def carry_out(plan: Plan) -> Results:
    """Run all tasks one after the other; record those that fail, and continue."""
    results, began = Results(), time.monotonic()
    for number, task in enumerate(plan.tasks, 1):
        name = task.system.name
        if name in results.not_run:
            continue
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in task.measures if kind != "warm"))
        minutes = (time.monotonic() - began) / 60
        sys.stderr.write(f"{minutes:5.1f} min  {number}/{len(plan.tasks)}  {name}: {kinds}\n")
        try:
            lines, failure = _run(task)
        except NotInstalledError as error:
            lines, failure = [], str(error)
        results.lines += lines
        if failure:
            left = kinds if any(line["system"] == name for line in results.lines) else ""
            results.not_run[f"{name}, all of {left}" if left else name] = failure
            sys.stderr.write(f"           not run to its end: {failure}\n")
    results.seconds = time.monotonic() - began
    return results


def _run(task: Task) -> tuple[list[Line], str]:
    """Return the results, and the reason if the task did not finish.

    Raises NotInstalledError.
    """
    system, place = task.system, environment(task.system.environment)
    words = [system.peer, json.dumps(system.options), json.dumps(task.measures)]
    process = subprocess.Popen(
        [str(place.python), "-m", "tests.bench.measure", *words],
        cwd=ROOT,
        env={**plain(), **place.variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, complaints = process.communicate(timeout=TASK_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, complaints = process.communicate()
        complaints += f"no end after {TASK_LIMIT} s"
    except BaseException:
        process.terminate()  # its servers end with it
        process.wait()
        raise
    lines = [{"system": system.name, **json.loads(line)} for line in out.splitlines() if line]
    if not process.returncode:
        return lines, ""
    said = [line for line in complaints.splitlines() if line.strip()]
    return lines, said[-1] if said else f"status {process.returncode}"
