"""Requests are refused if too many are waiting; some requests never are."""

from __future__ import annotations

from msgspec import structs
from msgspec.structs import replace

from statemachine.calls import Answered, Load
from statemachine.states import State
from statemachine.tool_rules import BUSY
from tests.unit.driver import Desk
from tests.unit.facts import ways

FULL_POOL = Load(full_pools=frozenset({"local"}))


def desk(state: State, load: Load, *, open_calls: int = 0) -> Desk:
    made = Desk(*ways()[state])
    made.known = replace(made.known, load=load)
    made.chat = structs.replace(made.chat, open_calls=open_calls)
    return made


def refused(answer: Answered | None) -> str:
    assert answer is not None
    assert answer.is_error
    assert answer.result.keys() == {"error"}
    words = str(answer.result["error"])
    assert words.startswith(BUSY)
    assert "try again later" in words
    return words


def test_calls_of_a_chat_may_wait_up_to_its_limit() -> None:
    load = Load(calls_per_chat=2)

    assert desk(State.BUILDING, load, open_calls=1).create() is None
    assert "2 calls of this chat wait" in refused(desk(State.BUILDING, load, open_calls=2).create())


def test_above_the_limit_of_all_chats_no_new_call_may_wait() -> None:
    load = Load(full=True)

    for made in (desk(State.NONE, load), desk(State.BUILDING, load)):
        assert "waiting calls of all chats" in refused(made.create())
        assert made.jobs == []
    refused(desk(State.STOPPED, load).start())
    refused(desk(State.READY, load).stop())
    refused(desk(State.BUILD_TIMED_OUT, load).create())


def test_a_call_that_is_answered_at_once_is_never_refused_for_load() -> None:
    load = Load(calls_per_chat=1, full=True, full_pools=frozenset({"local"}))
    made = desk(State.READY, load, open_calls=9)

    for answer in (made.ask("list_templates"), made.start(), made.create()):
        assert answer is not None
        assert not answer.is_error


def test_a_waiting_call_keeps_waiting_under_any_load() -> None:
    made = desk(State.STOPPING, Load())
    assert made.start("c") is None

    made.known = replace(made.known, load=Load(calls_per_chat=1, full=True))
    made.chat = structs.replace(made.chat, open_calls=1)
    made.hear(*ways()[State.STOPPED][-1:])

    assert "c" in made.open
    assert [job.transition for job in made.jobs] == ["start"]


def test_no_start_build_is_requested_if_the_queue_of_its_pool_is_full() -> None:
    for made in (desk(State.NONE, FULL_POOL), desk(State.BUILD_FAILED, FULL_POOL)):
        assert "pool 'local'" in refused(made.create())
        assert made.jobs == []
        assert made.states[-1:] != [State.BUILDING]


def test_a_call_that_waited_for_a_stop_is_also_refused_if_the_queue_is_full() -> None:
    made = desk(State.STOPPING, FULL_POOL)
    assert made.start("c") is None

    made.hear(*ways()[State.STOPPED][-1:])

    refused(made.answers["c"])
    assert made.jobs == []


def test_the_queue_limit_affects_neither_other_pools_nor_stops() -> None:
    assert desk(State.NONE, Load(full_pools=frozenset({"far"}))).create() is None
    assert desk(State.READY, FULL_POOL).stop() is None
