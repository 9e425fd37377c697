"""Subjects: how they are built, parsed and matched, and to which streams they belong."""

from __future__ import annotations

import pytest

from bus import subjects
from bus.streams import CONSUMERS, STREAMS, pool_consumer
from bus.subjects import Inbound
from tests.doubles.subjects import matches

MADE = {
    "WORKSPACED_IN": subjects.inbound("tool", "c", "s"),
    "WORKSPACED_JOB": subjects.job("local"),
    "WORKSPACED_STATE": subjects.state("c"),
    "WORKSPACED_LOG": subjects.log("c", "b"),
    "WORKSPACED_RESULT": subjects.result("c", "call"),
    "WORKSPACED_DEAD": subjects.dead("tool"),
    "WORKSPACED_TIMER": subjects.alarm(1_900_000_000_250),
    "WORKSPACED_PRESENCE": subjects.presence("c", "a"),
    "WORKSPACED_EXEC": subjects.exec_output("c", "a", "e"),
}


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_each_subject_belongs_to_its_stream_and_no_other(stream: object) -> None:
    for name, subject in MADE.items():
        taken = any(matches(pattern, subject) for pattern in stream.subjects)  # type: ignore[attr-defined]
        assert taken == (name == stream.name)  # type: ignore[attr-defined]


def test_an_alarm_that_rang_belongs_to_the_stream_and_the_consumer_of_alarms() -> None:
    rang = subjects.ALARM_RANG

    (alarms,) = [s for s in STREAMS if any(matches(p, rang) for p in s.subjects)]
    (worker,) = [c for c in CONSUMERS if c.stream == alarms.name and matches(c.filter, rang)]
    assert not matches(worker.filter, subjects.alarm(1_900_000_000_250))


def test_each_pool_has_its_own_consumer() -> None:
    consumer = pool_consumer("local")

    assert (consumer.name, consumer.filter) == ("pool-local", "workspaced.job.local")
    assert consumer.ack_wait == 30


@pytest.mark.parametrize("kind", ["tool", "provisioner", "agent"])
def test_an_inbound_subject_is_parsed_into_its_parts(kind: str) -> None:
    assert subjects.parse_inbound(subjects.inbound(kind, "c", "s")) == Inbound(kind, "c", "s")


@pytest.mark.parametrize(
    "subject",
    ["workspaced.in.tool.c", "workspaced.in.tool.c.s.x", "workspaced.in.other.c.s", "x"],
)
def test_other_subjects_are_not_parsed_as_inbound(subject: str) -> None:
    assert subjects.parse_inbound(subject) is None


def test_a_heartbeat_subject_names_its_agent() -> None:
    assert subjects.parse_presence(subjects.presence("c", "a")) == ("c", "a")


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        (">", "a", True),
        ("a.b", "a", False),
    ],
)
def test_wildcards_match_as_in_nats(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected
