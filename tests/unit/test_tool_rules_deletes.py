"""Tool rules after a delete that did not succeed; the table of branches is in `test_tool_rules`."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from statemachine.chat import MAX_BEFORE_DELETE
from statemachine.events import BuildRequested, Event
from statemachine.states import Phase, State
from tests.unit.driver import PYTHON, Desk
from tests.unit.facts import (
    DELETE,
    START,
    STOP,
    canceled,
    chat,
    connected,
    disconnected,
    event,
    failed,
    lifecycle,
    place,
    requested,
    started,
    succeeded,
    uid,
)
from tests.unit.jobs import Jobs, is_error
from tests.unit.test_order import possible

S = State
KNOWN = started(1, workspace_name="w", owner_name="ann", template_id=PYTHON.id)
RUNS = [requested(), KNOWN, succeeded(), connected(1), lifecycle(2, "ready")]
STOPPED = [*RUNS, requested(2, STOP), started(2, STOP), disconnected(9), succeeded(2, STOP)]
FAILED = [requested(), KNOWN, failed()]
STANDINGS: dict[str, tuple[list[Event], int, Phase]] = {
    "running": (RUNS, 2, Phase.RUNNING),
    "stopped": (STOPPED, 3, Phase.STOPPED),
    "a failed build": (FAILED, 2, Phase.FAILED_BUILD),
    "a failed stop": ([*RUNS, requested(2, STOP), failed(2, STOP)], 3, Phase.RUNNING),
    "a failed stop of a failed build": (
        [*FAILED, requested(2, STOP), canceled(2, STOP)],
        3,
        Phase.FAILED_BUILD,
    ),
}
"""Facts before a delete, the number of the delete, and the phase of the workspace before it."""
UNSUCCESSFUL = {
    "failed": lambda number: [failed(number, DELETE)],
    "canceled after it began": lambda number: [started(number, DELETE), canceled(number, DELETE)],
    "canceled, and that it began is heard of later": lambda number: [
        canceled(number, DELETE),
        started(number, DELETE),
    ],
}


def deleted_badly(name: str, how: str) -> Desk:
    facts, number, _ = STANDINGS[name]
    return Desk(*facts, requested(number, DELETE), *UNSUCCESSFUL[how](number))


def called_off(name: str) -> Desk:
    """Return a chat whose delete was canceled before it began."""
    facts, number, _ = STANDINGS[name]
    return Desk(*facts, requested(number, DELETE), canceled(number, DELETE))


@pytest.mark.parametrize("how", UNSUCCESSFUL)
@pytest.mark.parametrize("name", STANDINGS)
def test_c4l_after_a_failed_delete_a_new_workspace_is_created_and_the_old_one_deleted(
    name: str, how: str
) -> None:
    desk, number = deleted_badly(name, how), STANDINGS[name][1]

    assert desk.create("c") is None

    old, new = desk.jobs
    assert (old.workspace_id, old.transition, old.build_number) == (uid("w"), DELETE, number + 1)
    assert (new.transition, new.build_number) == (START, 1)
    assert desk.chat.current is not None
    assert desk.chat.current.id == new.workspace_id
    Jobs(desk).succeed(())
    assert desk.result("c")["created"] is True


@pytest.mark.parametrize("how", UNSUCCESSFUL)
@pytest.mark.parametrize("name", STANDINGS)
def test_s5d_after_a_failed_delete_there_is_nothing_to_start(name: str, how: str) -> None:
    desk = deleted_badly(name, how)

    answer = desk.start()

    assert is_error(answer)
    assert answer is not None
    assert "create_workspace" in answer.result["error"]
    assert desk.jobs == []


@pytest.mark.parametrize("how", UNSUCCESSFUL)
@pytest.mark.parametrize("name", STANDINGS)
def test_p4c_a_workspace_whose_delete_failed_can_be_stopped(name: str, how: str) -> None:
    desk, number = deleted_badly(name, how), STANDINGS[name][1]

    assert desk.stop("p") is None

    assert (desk.job.transition, desk.job.build_number) == (STOP, number + 1)
    Jobs(desk).succeed()
    assert desk.result("p")["stopped"] is True
    assert desk.chat.phase is Phase.STOPPED
    assert desk.start() is None


def test_c3g_s3d_a_call_that_waits_for_a_delete_is_evaluated_again_when_it_fails() -> None:
    desk = Desk(*STOPPED, requested(3, DELETE))
    assert desk.create("c") is None
    assert desk.start("s") is None

    desk.hear(failed(3, DELETE))

    assert [job.transition for job in desk.jobs] == [DELETE, START]
    other = Desk(*STOPPED, requested(3, DELETE))
    assert other.start("s") is None
    other.hear(failed(3, DELETE))
    assert is_error(other.answers["s"])


@pytest.mark.parametrize("how", UNSUCCESSFUL)
def test_a_failed_delete_may_be_repeated(how: str) -> None:
    desk = deleted_badly("stopped", how)

    desk.delete()

    assert (desk.job.transition, desk.job.build_number) == (DELETE, 4)
    Jobs(desk).succeed()
    assert desk.chat.state is S.NONE


@pytest.mark.parametrize("name", STANDINGS)
def test_a_delete_canceled_before_it_began_changes_nothing(
    name: str,
) -> None:
    assert called_off(name).chat.phase is STANDINGS[name][2]


def test_c4m_s5e_p4d_after_a_delete_that_never_began_a_stopped_workspace_is_stopped() -> None:
    created = called_off("stopped").create()
    assert created is not None
    assert created.result["status"] == "stopped"
    stopped = called_off("stopped").stop()
    assert stopped is not None
    assert stopped.result["no_build"] is True
    desk = called_off("stopped")

    assert desk.start("s") is None

    assert (desk.job.transition, desk.job.build_number) == (START, 4)
    Jobs(desk).succeed(())
    assert desk.result("s")["started"] is True


def test_c4m_s5e_p4d_after_a_delete_that_never_began_a_running_workspace_runs() -> None:
    created = called_off("running").create()
    assert created is not None
    assert created.result["status"] == "already_exists"
    started_ = called_off("running").start()
    assert started_ is not None
    assert started_.result["no_build"] is True
    desk = called_off("running")
    assert desk.stop() is None
    assert (desk.job.transition, desk.job.build_number) == (STOP, 3)


def test_c4m_s5e_p4d_after_a_delete_that_never_began_a_failed_build_stays_failed() -> None:
    for ask, jobs in (("create", [STOP, START]), ("start", [START]), ("stop", [STOP])):
        desk = called_off("a failed build")

        assert getattr(desk, ask)() is None

        assert [job.transition for job in desk.jobs] == jobs


def test_deletes_that_never_began_do_not_hide_earlier_builds() -> None:
    calls_off = [fact for n in (3, 4, 5) for fact in (requested(n, DELETE), canceled(n, DELETE))]

    assert chat(*STOPPED, *calls_off).phase is Phase.STOPPED
    one_failed = [*calls_off[:2], requested(4, DELETE), failed(4, DELETE), *calls_off[4:]]
    assert chat(*STOPPED, *one_failed).phase is Phase.FAILED_DELETE


def test_the_number_of_builds_remembered_before_a_delete_is_limited() -> None:
    facts = [fact for n in range(2, 99) for fact in (requested(n, DELETE), canceled(n, DELETE))]

    end = chat(*RUNS, *facts)

    assert end.current is not None
    assert len(end.current.before_delete) == MAX_BEFORE_DELETE
    assert end.phase is Phase.RUNNING


def test_builds_remembered_before_a_delete_contain_no_values() -> None:
    asked = BuildRequested(
        workspace_id=uid("w"),
        workspace_name="w",
        owner_name="ann",
        build_id=uid("w/b2"),
        build_number=2,
        transition=STOP,
        parameters={"token": "s3cret"},
    )

    end = chat(*RUNS, event(asked), failed(2, STOP, error="s3cret"), started(3, DELETE))

    assert end.current is not None
    assert "s3cret" not in str(end.current.before_delete)


ORDERS: dict[str, list[Event]] = {
    "stopped, and a delete that fails": [*STOPPED[-3:], requested(3, DELETE), failed(3, DELETE)],
    "stopped, and a delete that never began": [
        *STOPPED[-3:],
        requested(3, DELETE),
        canceled(3, DELETE),
    ],
    "stopped, and a canceled delete that began": [
        succeeded(2, STOP),
        started(3, DELETE),
        canceled(3, DELETE),
    ],
    "made elsewhere": [succeeded(2, STOP), canceled(3, DELETE), canceled(4, DELETE)],
    "made elsewhere, one fails": [failed(3, DELETE), succeeded(2, STOP), canceled(4, DELETE)],
    "made elsewhere, the stop fails": [failed(2, STOP), canceled(3, DELETE)],
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_facts_does_not_change_what_a_failed_delete_left(name: str) -> None:
    facts = [succeeded(), *ORDERS[name]]
    first = [] if name.startswith("made elsewhere") else [requested()]
    end = chat(*first, *facts)
    for order in permutations(facts):
        if possible((*first, *order)):
            assert place(chat(*first, *order)) == place(end), [fact.data for fact in order]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_order_of_facts_does_not_matter_for_a_workspace_that_becomes_current(
    order: int,
) -> None:
    """Facts about it arrive while the chat has another one; the chat binds it later."""
    theirs: dict[str, Any] = {"workspace": "x"}
    facts = [succeeded(**theirs), succeeded(2, STOP, **theirs), canceled(3, DELETE, **theirs)]
    facts = [*facts[order:], *facts[:order]]

    end = chat(*RUNS, *facts, succeeded(2, DELETE))

    assert end.current is not None
    assert end.current.id == uid("x")
    assert end.phase is Phase.STOPPED
