"""The benchmark still runs, and reports its results."""

from __future__ import annotations

import pytest

from tests.bench import runs
from tests.bench.environments import Environment, NotInstalledError, environment
from tests.bench.figures import summary
from tests.bench.goals import Verdict, verdicts
from tests.bench.plan import (
    DBOS,
    LATENCY,
    LISTEN_NOTIFY,
    PARTS,
    PRODUCT,
    STARTS,
    SYSTEMS,
    Plan,
    Task,
    full,
)
from tests.bench.report import page
from tests.bench.runs import Results
from tests.bench.tables import tables

MACHINE = {
    "cores": 2,
    "cpu": "any",
    "memory_gib": 1,
    "kernel": "6",
    "python": "3",
    "fsync_p50_us": 1,
    "fsync_p99_us": 1,
    "generator_s": 1,
    "load_average": [0.0],
    "commit": "none",
    "versions": {},
}


def test_the_benchmark_answers_all_chats_over_the_wire_and_reports_them() -> None:
    measures = (
        ("rest", {}),
        ("latency", {"chats": 10, "seconds": 0.5}),
        ("twice", {"chats": 2}),
        ("throughput", {"chats": 8}),
    )
    plan = Plan("smoke", (Task(PRODUCT, measures),), starts=0, sizes=(8, 8))

    results = runs.carry_out(plan)

    assert not results.not_run
    verified = {line["measure"]: line["verify"] for line in results.lines if "verify" in line}
    assert verified == {"latency": "ok", "twice": "ok", "throughput": "ok"}
    found = tables(plan, results, {}, [], MACHINE)
    text = "".join(table.text() for table in found)
    assert PRODUCT.title in text
    assert "Goals" in text
    assert "<svg" in page(plan, results, found, MACHINE)


def test_a_system_that_cannot_be_installed_is_reported_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str) -> Environment:
        if name == "dbos":
            raise NotInstalledError("no registry")
        return environment(name)

    monkeypatch.setattr(runs, "environment", refuse)
    tasks = Task(DBOS, (("warm", {}),)), Task(LISTEN_NOTIFY, (("rest", {}),))

    results = runs.carry_out(Plan("smoke", tasks, starts=0, sizes=(8, 8)))

    assert results.not_run == {"dbos": "no registry"}
    assert results.of(LISTEN_NOTIFY, "rest")


def test_a_percentile_of_few_values_is_one_of_the_values() -> None:
    assert summary([3.0, 1.0, 2.0])["p50"] == 2.0
    assert summary([3.0, 1.0, 2.0])["p99"] == 3.0


def test_the_full_plan_has_every_system_and_every_measure_of_workspaced() -> None:
    plan = full(runs=2)

    assert {task.system.name for task in plan.tasks} == {system.name for system in SYSTEMS}
    ours = {name for task in plan.tasks if task.system == PRODUCT for name, _ in task.measures}
    assert ours >= {"rest", "latency", "throughput", "half", "idle", "waiting", "aged"}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_judges_only_its_own_goals(part: str) -> None:
    plan = full(parts=[part])

    judged = verdicts(plan, Results(), {}, [])

    assert {verdict.part for verdict in judged} == {part}
    assert (plan.starts > 0) == (part == STARTS)
    assert plan.tasks or any(plan.commands)


@pytest.mark.parametrize(
    ("found", "must", "aim", "word"),
    [
        (None, 2.0, 1.5, "not measured"),
        (2.1, 2.0, 1.5, "missed"),
        (1.8, 2.0, 1.5, "must met"),
        (1.4, 2.0, 1.5, "met"),
        (1.4, 1.2, None, "missed"),
        (1.1, 1.2, None, "met"),
        (60.0, None, 50.0, "goal missed"),
    ],
)
def test_a_goal_is_judged_by_what_it_must_reach_and_what_it_aims_at(
    found: float | None, must: float | None, aim: float | None, word: str
) -> None:
    assert Verdict(LATENCY, "p50", "", "", found, must, aim).word == word
