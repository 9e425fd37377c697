"""The benchmark still runs, and reports its results."""

from __future__ import annotations

import pytest

from tests.bench import runs
from tests.bench.environments import Environment, NotInstalledError, environment
from tests.bench.figures import summary
from tests.bench.plan import DBOS, LISTEN_NOTIFY, PRODUCT, SYSTEMS, Plan, Task, full
from tests.bench.report import page
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


def test_twenty_chats_over_the_wire_are_all_answered_and_told_of() -> None:
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
    told = tables(plan, results, {}, MACHINE)
    text = "".join(table.text() for table in told)
    assert PRODUCT.title in text
    assert "Goals" in text
    assert "<svg" in page(plan, results, told, MACHINE)


def test_what_can_not_be_installed_is_named_and_the_rest_goes_on(
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


def test_a_percentile_of_few_is_one_of_them() -> None:
    assert summary([3.0, 1.0, 2.0])["p50"] == 2.0
    assert summary([3.0, 1.0, 2.0])["p99"] == 3.0


def test_the_whole_plan_has_every_system_and_every_measure_of_ours() -> None:
    whole = full(runs=2)

    assert {task.system.name for task in whole.tasks} == {system.name for system in SYSTEMS}
    ours = {name for task in whole.tasks if task.system == PRODUCT for name, _ in task.measures}
    assert ours >= {"latency", "throughput", "half", "idle", "crowd", "aged"}
