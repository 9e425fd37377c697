"""A rejected fact about a build: the chat's notice names it, and calls stop waiting for it."""

from __future__ import annotations

from itertools import permutations

import pytest

from statemachine.chat import MAX_REJECTED, chat_from_json, chat_to_json
from statemachine.events import BuildRequested, Event, FactRejected, TemplateRef, WaitResumed
from statemachine.replay import Fold, replay
from statemachine.snapshot_audit import differences
from statemachine.states import Phase, State
from statemachine.views import notice, state_changed
from tests.unit.driver import PYTHON, Desk
from tests.unit.facts import (
    CHAT,
    START,
    STOP,
    chat,
    connected,
    event,
    failed,
    late,
    place,
    requested,
    started,
    succeeded,
    then_late,
    uid,
)
from tests.unit.logs import recorded

WRONG = "bad_data: data.build_number is not an integer"


def rejected(
    fact: str = "build_failed", build: str = "w/b1", detail: str = WRONG, pool: str | None = None
) -> Event:
    found = event(FactRejected(build_id=uid(build), fact=fact, detail=detail))
    return found.model_copy(update={"pool": pool})


def ours(number: int = 1) -> Event:
    """Return the request of a build in pool "moon"."""
    found = requested(number)
    assert isinstance(found.data, BuildRequested)
    ref = TemplateRef(id=uid("t"), name="t", version_id=uid("v"), pool="moon")
    return found.model_copy(update={"data": found.data.model_copy(update={"template": ref})})


@pytest.mark.parametrize("fact", ["build_succeeded", "build_failed", "build_canceled"])
@pytest.mark.parametrize("before", [0, 1, 2, 3], ids=["first", "early", "in time", "late"])
def test_after_its_limit_a_build_with_a_rejected_end_counts_as_failed(
    fact: str, before: int
) -> None:
    way = then_late(requested(), started())
    way.insert(before, rejected(fact))

    over = chat(*way)

    assert over.state is State.BUILD_TIMED_OUT
    assert over.phase is Phase.FAILED_BUILD
    words = notice(over)
    assert words is not None
    assert f"{fact} of build 1" in words
    assert "data.build_number is not an integer" in words


def test_after_its_limit_a_stop_with_a_rejected_end_counts_as_failed() -> None:
    over = chat(*then_late(requested(), succeeded(), requested(2, STOP)), rejected(build="w/b2"))

    assert over.state is State.STOP_TIMED_OUT
    assert over.phase is Phase.RUNNING


@pytest.mark.parametrize("fact", ["build_started", "agent_lifecycle", ""])
def test_the_rejection_of_a_fact_that_is_not_terminal_is_only_noticed(fact: str) -> None:
    over = chat(*then_late(requested()), rejected(fact))

    assert over.phase is Phase.BEING_BUILT
    assert notice(over) is not None


def test_until_the_limit_the_corrected_end_may_still_arrive() -> None:
    waiting = chat(requested(), rejected())

    assert waiting.state is State.BUILDING
    assert waiting.phase is Phase.BEING_BUILT
    assert notice(waiting) is not None
    assert place(chat(requested(), rejected(), succeeded())) == place(
        chat(requested(), succeeded())
    )
    assert notice(chat(requested(), rejected(), failed())) is None


def test_a_call_after_the_limit_does_not_wait_again() -> None:
    def timed_out() -> Desk:
        desk = Desk()
        desk.create()
        build = rejected(build="x")
        assert isinstance(build.data, FactRejected)
        data = build.data.model_copy(update={"build_id": desk.job.build_id})
        desk.hear(build.model_copy(update={"data": data}))
        return desk.hear(late(desk.chat))

    start, stop, create = timed_out(), timed_out(), timed_out()

    assert start.ask("start_workspace") is None
    assert [job.build_number for job in start.jobs] == [1, 2]
    assert stop.ask("stop_workspace") is None
    assert [job.transition for job in stop.jobs] == [START, STOP]
    assert create.ask("create_workspace", template_id=PYTHON.id) is None
    first, *more = create.jobs
    assert sorted((job.workspace_id == first.workspace_id, job.transition) for job in more) == [
        (False, START),
        (True, STOP),
    ]


def test_order_does_not_matter() -> None:
    facts = [started(), connected(1), rejected(), rejected("build_started", detail="other")]

    ends = [chat(*order) for order in permutations(facts)]

    assert {notice(end) for end in ends} == {notice(ends[0])}
    assert {tuple(sorted(map(str, end.rejected))) for end in ends} == {
        tuple(sorted(map(str, ends[0].rejected)))
    }


def test_rejections_of_superseded_builds_are_forgotten() -> None:
    moved_on = chat(requested(), rejected(), requested(2))

    assert moved_on.rejected == ()
    assert chat(rejected(), of=moved_on) == moved_on


def test_a_repeated_rejection_changes_nothing() -> None:
    once = chat(requested(), rejected())

    assert chat(rejected(), of=once) == once


def test_a_rejected_fact_of_an_agent_is_noticed_after_the_build_too() -> None:
    built = chat(ours(), succeeded(), rejected("agent_lifecycle", detail="data.lifecycle"))

    words = notice(built)
    assert words is not None
    assert "agent_lifecycle" in words
    assert notice(chat(connected(1), of=built)) == words


@pytest.mark.parametrize(("pool", "counts"), [("moon", True), ("sun", False), (None, True)])
@pytest.mark.parametrize("early", [True, False])
def test_a_rejected_end_from_another_pool_does_not_count(
    pool: str | None, *, counts: bool, early: bool
) -> None:
    letter = rejected(pool=pool)

    over = chat(*then_late(*([letter, ours()] if early else [ours(), letter])))

    assert over.phase is (Phase.FAILED_BUILD if counts else Phase.BEING_BUILT)
    assert (notice(over) is not None) == counts


def test_rejections_about_other_builds_never_displace_those_of_the_followed_one() -> None:
    others = [rejected(build=f"x{n}") for n in range(MAX_REJECTED * 2)]

    crowded = chat(requested(), rejected(), *others)

    assert len(crowded.rejected) == MAX_REJECTED
    assert notice(crowded) is not None


def test_rejections_are_not_part_of_the_published_state() -> None:
    noted = chat(requested(), rejected())

    assert noted.version == chat(requested()).version
    assert "notice" not in state_changed(noted)


def test_rejections_are_replayed_from_the_log() -> None:
    resumed = event(WaitResumed(build_id=uid("w/b1"), call_id="c"))
    log = list(recorded([*then_late(rejected(), ours(), rejected("build_started")), resumed]))

    (folded,) = replay(log).values()

    assert folded.differences == ()
    assert {r.fact for r in folded.chat.rejected} == {"build_failed", "build_started"}
    stored = chat_to_json(folded.chat)
    assert chat_from_json(stored) == folded.chat
    fold = Fold(CHAT)
    for entry in log:
        fold.take(entry)
    assert differences(stored, fold, 0) == []
