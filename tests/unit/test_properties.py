"""Properties that hold for any facts: order, repeats, snapshots and logs."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statemachine.chat import Chat, chat_from_json, chat_to_json
from statemachine.events import Event, ReportedAgent, Transition
from statemachine.machine import Moved
from statemachine.replay import replay
from statemachine.views import state_changed
from tests.unit.facts import (
    CHAT,
    DELETE,
    START,
    STOP,
    apply,
    canceled,
    chat,
    connected,
    deadline,
    deleted,
    disconnected,
    failed,
    lifecycle,
    lost,
    place,
    requested,
    started,
    succeeded,
    uid,
)
from tests.unit.logs import recorded
from tests.unit.test_matrix import assert_sound

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

LIFE = [
    "created",
    "starting",
    "start_timeout",
    "start_error",
    "ready",
    "shutting_down",
    "shutdown_error",
    "off",
]
NAMES = ("main", "Main", "dev-coderd-chat", "x-CODERD-chat", "zed")


@st.composite
def life(draw: st.DrawFn, agent: str, number: int) -> list[Event]:
    """Draw the reports of an agent that runs its scripts once; the sequences rise."""
    facts, sequence = list[Event](), 0
    for value in draw(st.lists(st.sampled_from(LIFE), unique=True).map(in_life_order)):
        for _ in range(draw(st.integers(0, 2))):
            sequence += draw(st.integers(1, 3))
            facts.append(draw(st.sampled_from([connected, disconnected]))(sequence, agent, number))
        sequence += 1
        facts.append(lifecycle(sequence, value, agent, number))
    return draw(st.lists(st.sampled_from(facts), unique_by=id, max_size=5)) if facts else []


def in_life_order(values: list[str]) -> list[str]:
    return sorted(values, key=LIFE.index)


@st.composite
def build(draw: st.DrawFn, number: int, transition: Transition) -> list[Event]:
    """Draw some facts of a build: its beginning, its end, and the reports of its agents."""
    facts = [started(number, transition)] if draw(st.booleans()) else []
    names = draw(st.lists(st.sampled_from(NAMES), max_size=3)) if transition is START else []
    made = tuple(
        ReportedAgent(
            id=uid(f"{number}/{n}"),
            name=name,
            parent_id=draw(st.sampled_from([None, None, uid(f"{number}/0")])),
            display_order=draw(st.integers(0, 1)),
        )
        for n, name in enumerate(names)
    )
    for n in range(len(made)):
        facts += draw(life(f"{number}/{n}", number))
    match draw(st.sampled_from(["succeeded", "succeeded", "failed", "canceled", "not yet"])):
        case "succeeded":
            facts.append(succeeded(number, transition, made))
        case "failed":
            facts.append(failed(number, transition, code=draw(st.sampled_from([None, "E"]))))
        case "canceled":
            facts.append(canceled(number, transition))
    return facts


@st.composite
def history(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """Draw the first event (the request that binds the workspace, or none), and later facts.

    Facts about another workspace are drawn only if the chat never loses its own: in state `none` a
    chat binds the first workspace that is reported, so the order would matter.
    """
    first = draw(st.sampled_from([[], [requested()]]))
    kinds = draw(st.lists(st.sampled_from([START, STOP]), min_size=1, max_size=4))
    kinds[0] = START if first else kinds[0]
    gone = draw(st.integers(0, 4)) == 0
    if gone:
        kinds.append(DELETE)
    facts = [
        fact
        for number, transition in enumerate(kinds, 1)
        for fact in draw(build(number, transition))
    ]
    if gone and draw(st.booleans()):
        facts.append(deleted())
    if first and not gone:
        facts += draw(st.lists(st.sampled_from(FOREIGN), unique_by=id, max_size=2))
    return first, facts


FOREIGN = [
    started(9, workspace="x"),
    succeeded(9, STOP, workspace="x"),
    connected(1, workspace="x"),
    deleted("y"),
]


@quick
@given(history(), st.randoms(use_true_random=False))
def test_order_never_matters(made: tuple[list[Event], list[Event]], chance: Random) -> None:
    """Different terminal facts of one build, for which order does matter, are never drawn."""
    first, facts = made
    shuffled = chance.sample(facts, len(facts))

    assert place(chat(*first, *shuffled)) == place(chat(*first, *facts))


@quick
@given(history(), st.randoms(use_true_random=False), st.integers(0, 10))
def test_an_undone_loss_does_not_change_the_final_state(
    made: tuple[list[Event], list[Event]], chance: Random, where: int
) -> None:
    """The agent is lost after its last report, and then connects with a higher sequence."""
    first, facts = made
    shuffled = chance.sample(facts, len(facts))
    agent = {"agent": "1/0", "number": 1}
    again = connected(99, **agent)  # type: ignore[arg-type]
    spoke = [n for n, f in enumerate(shuffled) if getattr(f.data, "agent_id", None) == uid("1/0")]
    where += max(spoke, default=-1) + 1
    with_loss = [*shuffled[:where], lost(**agent), *shuffled[where:], again]  # type: ignore[arg-type]

    assert place(chat(*first, *with_loss)) == place(chat(*first, *facts, again))


@quick
@given(history(), st.randoms(use_true_random=False))
def test_repeated_facts_move_nothing(made: tuple[list[Event], list[Event]], chance: Random) -> None:
    """However old the facts are, and even if the store did not recognize them as repeats."""
    first, facts = made
    once, twice = chat(*first), chat(*first)
    for n, fact in enumerate(facts):
        once = apply(once, fact).chat
        again = chance.choice(facts[: n + 1])
        twice = chat(fact, again, of=twice)

        assert place(twice) == place(once)
        assert twice.version == once.version


ANYTHING = [
    *FOREIGN,
    requested(),
    requested(2, STOP),
    requested(3),
    requested(1, START, "new"),
    started(),
    succeeded(),
    failed(),
    canceled(),
    succeeded(2, STOP),
    failed(2, STOP),
    succeeded(3, made=()),
    started(4, DELETE),
    succeeded(4, DELETE),
    deleted(),
    connected(1),
    disconnected(2),
    connected(5, number=3),
    lost(),
    lifecycle(3, "start_error"),
    lifecycle(4, "ready"),
    lifecycle(6, "off", number=3),
    *(deadline(generation) for generation in range(1, 5)),
]
anything = st.lists(st.sampled_from(ANYTHING), max_size=14)


@quick
@given(anything)
def test_any_facts_in_any_order_leave_a_consistent_chat(facts: list[Event]) -> None:
    """Nothing raises, and each step raises the version by one."""
    workspace = Chat(chat_id=CHAT)
    for fact in facts:
        decision = apply(workspace, fact)
        if isinstance(decision, Moved):
            numbers = [step.version for step in decision.steps]
            assert numbers == [workspace.version + n + 1 for n in range(len(numbers))]
            for step in decision.steps:
                assert_sound(step)
        else:
            assert state_changed(decision.chat) == state_changed(workspace)
        workspace = decision.chat


@quick
@given(anything)
def test_a_snapshot_survives_its_own_json(facts: list[Event]) -> None:
    workspace = chat(*facts)

    assert chat_from_json(chat_to_json(workspace)) == workspace


@quick
@given(anything, anything)
def test_a_snapshot_that_was_read_back_decides_the_same(
    before: list[Event], after: list[Event]
) -> None:
    kept = chat(*before)

    read_back = chat_from_json(chat_to_json(kept))

    assert chat(*after, of=read_back) == chat(*after, of=kept)


@quick
@given(anything)
def test_replaying_a_log_gives_the_recorded_states(facts: list[Event]) -> None:
    """The log also contains repeats, which change nothing."""
    log = list(recorded(facts))

    replayed = replay(log).get(CHAT)

    if replayed is not None:
        unique = {fact.id: fact for fact in facts}.values()
        assert replayed.differences == ()
        assert place(replayed.chat) == place(chat(*unique))


TAMPERED: list[tuple[str, Any]] = [
    ("outcome", "moved"),
    ("outcome", "repeat"),
    ("state_before", "stopped"),
    ("state_after", "stopped"),
    ("version", 99),
    ("version", None),
]


@quick
@given(st.data(), st.sampled_from(TAMPERED))
def test_a_tampered_log_is_caught(data: st.DataObject, change: tuple[str, Any]) -> None:
    log = list(recorded(data.draw(st.lists(st.sampled_from(ANYTHING), min_size=1, max_size=10))))
    entry = data.draw(st.sampled_from(log))
    key, value = change
    if entry[key] == value:
        return

    entry[key] = value

    (difference,) = replay(log)[CHAT].differences
    assert (difference.seq, difference.key, difference.recorded) == (entry["seq"], key, value)


def test_a_forged_or_missing_fact_is_caught() -> None:
    log = list(recorded([requested(), started(), succeeded(), connected(1)]))
    forged = deepcopy(log)
    forged[2]["event"]["type"] = "workspaced.build_canceled.v1"

    assert replay(log)[CHAT].differences == ()
    assert replay(forged)[CHAT].differences
    (gap,) = replay([log[0], *log[2:]])[CHAT].differences[:1]  # nothing published changes
    assert (gap.key, gap.recorded, gap.folded) == ("seq", 3, 2)
    assert replay([*log[:2], log[3]])[CHAT].differences


@pytest.mark.parametrize("key", ["event", "at"])
def test_a_log_entry_without_its_parts_is_refused(key: str) -> None:
    (entry,) = recorded([requested()])
    del entry[key]

    with pytest.raises(ValueError, match="entry 1"):
        replay([entry])


ENDINGS = [succeeded(), succeeded(made=()), failed(), failed(error="other"), canceled()]


@given(st.permutations(ENDINGS))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_first_terminal_fact_of_a_build_counts(endings: list[Event]) -> None:
    one = place(chat(requested(), endings[0]))

    assert place(chat(requested(), *endings)) == one
