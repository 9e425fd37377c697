"""Recorded logs, with endings written by hand as a second statement of the table of moves."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from statemachine import events
from statemachine.replay import Fold, Replayed, replay
from statemachine.views import state_changed

LOGS = Path(__file__).parent / "logs"
ENDINGS: dict[str, dict[str, str]] = tomllib.loads((LOGS / "endings.toml").read_text())


def entries(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (LOGS / f"{name}.jsonl").read_text().splitlines()]


def only(replayed: dict[str, Replayed]) -> Replayed:
    (chat,) = replayed.values()
    return chat


def test_every_log_has_an_ending_and_every_ending_a_log() -> None:
    assert {path.stem for path in LOGS.glob("*.jsonl")} == set(ENDINGS)


@pytest.mark.parametrize("name", ENDINGS)
def test_a_recorded_log_still_ends_where_it_did(name: str) -> None:
    ending = ENDINGS[name]

    chat = only(replay(entries(name)))

    assert chat.path == tuple(ending["path"].split())
    agent = state_changed(chat.chat)["agent"]
    shown = None if agent is None else f"{agent['status']} {agent['lifecycle'] or 'none'}"
    assert shown == ending.get("agent")
    stops_at = state_changed(chat.chat)["stops_at"]
    assert stops_at == ending.get("stops_at", stops_at)
    cause = chat.chat.cause
    assert cause is not None
    assert cause.type == ending.get("cause", cause.type)


@pytest.mark.parametrize("name", ENDINGS)
def test_a_recorded_log_still_agrees_entry_by_entry(name: str) -> None:
    """Replay yields the recorded outcome, states and version of each entry."""
    assert [str(difference) for difference in only(replay(entries(name))).differences] == []


@pytest.mark.parametrize("name", ["export-before-causes", "export-with-causes"])
def test_what_an_own_event_followed_from_is_known_whether_the_log_says_it_or_not(
    name: str,
) -> None:
    fold, causes = Fold(entries(name)[0]["event"]["subject"]), []
    for entry in entries(name):
        fold.take(entry)
        if entry["event"]["type"] == "workspaced.build_requested.v1":
            causes.append(fold.chat.cause)

    asked = [e["event"] for e in entries(name) if "tool_requested" in e["event"]["type"]]
    assert [(c.source, c.id, c.type) for c in causes if c] == [
        (event["source"], event["id"], event["type"]) for event in asked
    ]
    assert len(causes) == 4


def test_a_cause_or_a_limit_that_can_not_be_read_is_refused() -> None:
    for key in ("cause", "deadline"):
        log = entries("export-with-causes")
        log[1][key] = "x"
        with pytest.raises(ValueError, match="entry 2"):
            replay(log)


def test_a_limit_that_an_entry_did_not_set_is_named() -> None:
    log = entries("export-with-causes")
    log[0]["deadline"] = log[1]["deadline"]

    (difference,) = only(replay(log)).differences

    assert (difference.seq, difference.key, difference.folded) == (1, "deadline", None)


def test_the_limit_in_force_then_is_that_of_the_log() -> None:
    log = entries("export-with-causes")[:2]
    log[1]["deadline"] = "2031-01-01T00:00:00.000000Z"

    deadline = only(replay(log)).chat.deadline

    assert deadline is not None
    assert deadline.year == 2031


def test_logs_of_several_chats_may_be_mixed() -> None:
    one = entries("early-agent")
    other = json.loads(json.dumps(one).replace(one[0]["event"]["subject"], str(object_id(7))))
    mixed = [entry for pair in zip(one, other, strict=True) for entry in pair]

    replayed = replay(mixed)

    assert len(replayed) == 2
    assert all(chat.path[-1] == "ready" and not chat.differences for chat in replayed.values())


def object_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def test_every_type_that_a_log_may_hold_is_frozen_here() -> None:
    """So that this test fails if a change of a model makes old logs unreadable."""
    frozen = {entry["event"]["type"] for name in ENDINGS for entry in entries(name)}

    models = [model for of_kind in events.BY_KIND.values() for model in of_kind]
    models += [
        events.BuildRequested,
        events.WaitResumed,
        events.DeadlinePassed,
        events.TtlPassed,
        events.OrphanGracePassed,
        events.FactRejected,
        events.DatabaseRestored,
        events.RetentionPassed,
        events.RetryDue,
        events.BuildOverdue,
        events.WorkspaceUsed,
    ]
    assert frozen == {f"workspaced.{model.name}.v1" for model in models}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("key", ["outcome", "state_before", "state_after", "version"])
def test_an_entry_that_was_tampered_with_is_named(name: str, key: str) -> None:
    log = entries(name)
    log[-1][key] = "another"

    (difference,) = only(replay(log)).differences

    assert (difference.seq, difference.key) == (len(log), key)
    assert f"seq {len(log)}: {key}" in str(difference)


def test_an_entry_that_cannot_be_read_is_refused_with_its_place() -> None:
    log = entries("early-agent")
    log[2]["event"]["type"] = "workspaced.nothing.v1"

    with pytest.raises(ValueError, match="entry 3"):
        replay(log)
