"""The check of `make bench-quick`: ratios to the sketch against recorded figures. Nothing is measured here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import ratios
from tests.bench.plan import LATENCY, PRODUCT, SKETCH, quick
from tests.bench.ratios import CHECKED, checks, complaint
from tests.bench.runs import Results

RECORDED = {"chats_s": 0.5, "events_s": 0.6, "cpu_per_1000": 3.0, "ready_p50_ms": 2.0}
WORSE = {"chats_s": 0.34, "events_s": 0.41, "cpu_per_1000": 4.0, "ready_p50_ms": 2.7}
WITHIN = {"chats_s": 0.36, "events_s": 0.43, "cpu_per_1000": 3.8, "ready_p50_ms": 2.5}
BETTER = {"chats_s": 0.9, "events_s": 0.9, "cpu_per_1000": 1.0, "ready_p50_ms": 1.0}
MACHINE = {
    "cores": 2,
    "cpu": "any",
    "memory_gib": 1,
    "kernel": "6",
    "fsync_p50_us": 9,
    "commit": "c0ffee",
}


def test_equal_or_better_ratios_pass() -> None:
    for found in (RECORDED, BETTER):
        assert complaint(checks(found, RECORDED)) == ""


def test_ratios_that_are_worse_by_less_than_the_slack_pass() -> None:
    assert complaint(checks(WITHIN, RECORDED)) == ""


@pytest.mark.parametrize("name", RECORDED)
def test_a_ratio_that_is_worse_by_more_than_the_slack_fails(name: str) -> None:
    message = complaint(checks({**RECORDED, name: WORSE[name]}, RECORDED))

    assert message.count("the sketch's") == 1


def test_the_message_names_figure_measured_value_limit_and_command() -> None:
    message = complaint(checks({**RECORDED, "cpu_per_1000": 4.0}, RECORDED))

    assert "CPU s per 1,000 chats: 4.00 x the sketch's" in message
    assert "3.00 x is recorded, so at most 3.90 x is allowed (30% slack)" in message
    assert "tests/bench/ratios.json: make bench-quick ARGS=--record" in message


def test_a_ratio_without_a_recorded_figure_fails() -> None:
    recorded = {name: ratio for name, ratio in RECORDED.items() if name != "events_s"}

    message = complaint(checks(RECORDED, recorded))

    assert "events/s: 0.60 x the sketch's, but no figure is recorded for it" in message


def test_a_ratio_that_was_not_measured_fails() -> None:
    message = complaint(checks({**RECORDED, "chats_s": None}, RECORDED))

    assert "chats/s: not measured" in message


def test_recorded_ratios_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"

    ratios.record(WITHIN, MACHINE, path)

    assert ratios.load(path) == WITHIN
    assert "2 cores" in path.read_text()


def test_the_checked_in_file_has_a_figure_for_each_ratio() -> None:
    assert ratios.load().keys() == {ratio.name for ratio in CHECKED}


def test_the_ratios_are_those_of_the_medians_at_the_largest_number_of_chats() -> None:
    def throughput(system: str, chats: int, chats_s: float) -> dict[str, object]:
        figures = {"chats": chats, "chats_s": chats_s, "events_s": chats_s, "cpu_per_1000": chats_s}
        return {"system": system, "measure": "throughput", **figures}

    ours, theirs = PRODUCT.name, SKETCH.name
    lines = [throughput(ours, 1000, rate) for rate in (90.0, 100.0, 900.0)]
    lines += [throughput(ours, 500, 1.0), throughput(theirs, 1000, 400.0)]

    found = ratios.measured(quick(), Results(lines))

    assert found == {
        "chats_s": 0.25,
        "events_s": 0.25,
        "cpu_per_1000": 0.25,
        "ready_p50_ms": None,
    }


def test_only_a_plan_that_measures_all_ratios_of_both_systems_is_compared() -> None:
    assert ratios.comparable(quick())
    assert not ratios.comparable(quick([PRODUCT]))
    assert not ratios.comparable(quick(parts=[LATENCY]))
