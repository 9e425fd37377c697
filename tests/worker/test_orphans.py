"""Workspaces that run but belong to no chat: workers log them, and stop them after a grace time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from statemachine.templates import template_id
from tests.rigs.messages import new_id
from tests.unit.driver import ORG
from tests.worker.messages import TEMPLATE_ID, Job, Senders
from tests.worker.rig import Hand, Rig

GRACE, RETRY, DAY = 900.0, 60.0, 86_400.0


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """The errors that workers logged for operators."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logging.getLogger("handlers.worker").addHandler(handler := Kept(logging.ERROR))
    yield found
    logging.getLogger("handlers.worker").removeHandler(handler)


async def given_ready_workspace(
    rig: Rig, hand: Hand, chat: str, call: str = "c", agents: Any = ("main",)
) -> Job:
    """Create a workspace for the chat; return its job."""
    await rig.senders.create(chat, call)
    await hand.pump()
    job = next(j for j in reversed(rig.jobs()) if j["transition"] == "start")
    await rig.senders.built(job, agents=agents)
    if agents:
        await rig.senders.agent(job, "connected", 1)
        await rig.senders.agent(job, "ready", 2)
    await hand.pump()
    assert rig.state(chat)["state"] == "ready"
    return job


async def given_lost_workspace(rig: Rig, hand: Hand, chat: str) -> Job:
    """Create a workspace whose agent connects and disconnects; return its job."""
    job = await given_ready_workspace(rig, hand, chat)
    await rig.senders.agent(job, "disconnected", 3)
    await hand.pump()
    return job


async def given_replaced_workspace(rig: Rig, hand: Hand, chat: str) -> tuple[Job, Job]:
    """Replace a workspace whose agent is lost; return its stop job and the job of the new one."""
    await given_lost_workspace(rig, hand, chat)
    new = await given_ready_workspace(rig, hand, chat, "again")
    (stop,) = [job for job in rig.jobs() if job["transition"] == "stop"]
    return stop, new


def job_from_elsewhere(chat: str, **more: Any) -> Job:
    """Return the job of a workspace that was made elsewhere."""
    job = {
        "chat_id": chat,
        "workspace_id": new_id(),
        "build_id": new_id(),
        "build_number": 1,
        "transition": "start",
        "template": {"version_id": None},
    }
    return job | more


async def listed_orphans(rig: Rig, chat: str) -> list[str]:
    """Return the orphans that operators see."""
    found = [
        o.id for c in await rig.store.chats.with_previous() for o in c.orphans if c.chat_id == chat
    ]
    had = await rig.store.chats.current_workspaces(set(found))
    return [one for one in found if one not in had]


async def log_entries(rig: Rig, chat: str, name: str) -> list[Any]:
    return [
        e
        for e in await rig.store.chats.log(chat, limit=10_000)
        if e["event"]["type"] == f"workspaced.{name}.v1"
    ]


async def test_a_replaced_workspace_is_stopped_and_is_not_an_orphan(
    rig: Rig, hand: Hand, send: Senders, chat: str, errors: list[str]
) -> None:
    old = await given_lost_workspace(rig, hand, chat)
    await send.create(chat, "again")
    await hand.pump()

    (stop,) = [job for job in rig.jobs() if job["transition"] == "stop"]
    assert stop["workspace_id"] == old["workspace_id"]
    assert stop["build_number"] == old["build_number"] + 1
    assert await listed_orphans(rig, chat) == []
    ours, asked = (await log_entries(rig, chat, "build_requested"))[-2:]
    assert asked["event"]["data"]["build_id"] == stop["build_id"]
    assert (asked["outcome"], asked["version"]) == ("foreign", None)
    assert ours["outcome"] == "moved"
    shown = len(rig.states[chat])
    await send.built(stop, "started")
    await send.built(stop)
    await hand.let_time_pass(DAY)
    assert [e["outcome"] for e in await log_entries(rig, chat, "build_succeeded")][-1] == "foreign"
    assert len([job for job in rig.jobs() if job["transition"] == "stop"]) == 1
    assert len(rig.states[chat]) == shown + 1, "its own limit"
    assert errors == []
    await rig.check(chat)


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_a_failed_stop_of_a_replaced_workspace_is_reported_and_repeated(
    rig: Rig, hand: Hand, send: Senders, chat: str, how: str, errors: list[str]
) -> None:
    stop, new = await given_replaced_workspace(rig, hand, chat)
    shown = rig.state(chat)

    await send.built(stop, how)
    await hand.pump()

    assert await listed_orphans(rig, chat) == [stop["workspace_id"]]
    (told,) = errors
    assert stop["workspace_id"] in told
    assert how in told
    await hand.let_time_pass(RETRY - 1)
    assert rig.job["build_number"] != 3
    await hand.let_time_pass(1)
    again = rig.job
    assert (again["workspace_id"], again["transition"]) == (stop["workspace_id"], "stop")
    assert again["build_number"] == stop["build_number"] + 1
    assert again["template"] == stop["template"]
    assert await listed_orphans(rig, chat) == []
    await send.built(again, how)
    await hand.pump()
    await hand.let_time_pass(5 * RETRY - 1)
    assert rig.job == again
    await hand.let_time_pass(1)
    assert rig.job["build_number"] == stop["build_number"] + 2
    assert len(errors) == 2
    await send.built(rig.job)
    await hand.let_time_pass(DAY)
    assert rig.job["build_number"] == stop["build_number"] + 2
    assert await listed_orphans(rig, chat) == []
    assert rig.state(chat) == shown, "the chat has nothing to do with it"
    assert rig.state(chat)["workspace"]["id"] == new["workspace_id"]
    await rig.check(chat)


async def test_a_deleted_workspace_is_no_longer_an_orphan(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    stop, _ = await given_replaced_workspace(rig, hand, chat)
    await send.built(stop, "failed")
    await hand.pump()

    await send.deleted(stop)
    await hand.let_time_pass(DAY)

    assert await listed_orphans(rig, chat) == []
    assert rig.job["build_number"] != 3
    await rig.check(chat)


async def test_a_late_end_of_a_stop_may_arrive_during_its_repetition(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """Facts of the old stop are stale, because a newer stop was requested."""
    stop, _ = await given_replaced_workspace(rig, hand, chat)
    await send.built(stop, "failed")
    await hand.let_time_pass(0)
    await hand.let_time_pass(RETRY)
    again = rig.job

    await send.built(stop)
    await send.built(again, "started")
    await send.built(stop, "failed")
    await hand.let_time_pass(GRACE / 2)

    assert rig.job == again
    await send.built(again)
    await hand.let_time_pass(DAY)
    assert rig.job == again
    assert await listed_orphans(rig, chat) == []
    await rig.check(chat)


async def test_an_orphan_is_stopped_after_its_grace_period(
    rig: Rig, hand: Hand, send: Senders, chat: str, errors: list[str]
) -> None:
    other = template_id(ORG, "other")
    await rig.push('name = "other"\n[build]\nstart = "true"')
    mine = await given_ready_workspace(rig, hand, chat)
    shown, theirs = rig.state(chat), job_from_elsewhere(chat)
    await send.built(theirs, "started", template_id=other, workspace_name="theirs")
    await hand.let_time_pass(DAY)
    assert await listed_orphans(rig, chat) == [], "its start has not succeeded"

    await send.built(theirs)
    await hand.pump()
    assert await listed_orphans(rig, chat) == [theirs["workspace_id"]]
    await hand.let_time_pass(GRACE - 1)
    assert rig.jobs() == [mine]
    await hand.let_time_pass(1)

    stop = rig.job
    assert (stop["workspace_id"], stop["workspace_name"]) == (theirs["workspace_id"], "theirs")
    assert (stop["transition"], stop["build_number"], stop["parameters"]) == ("stop", 2, {})
    assert stop["template"]["id"] == other
    (passed,) = await log_entries(rig, chat, "orphan_grace_passed")
    assert passed["event"]["data"] == {"workspace_id": theirs["workspace_id"]}
    assert passed["event"]["source"] == "/workspaced"
    assert rig.state(chat) == shown
    assert len(errors) == 1
    await send.built(stop)
    await hand.let_time_pass(DAY)
    assert await listed_orphans(rig, chat) == []
    assert rig.job == stop
    await rig.check(chat)


async def test_an_orphan_of_an_unknown_template_is_only_listed_and_logged(
    rig: Rig, hand: Hand, send: Senders, chat: str, errors: list[str]
) -> None:
    await given_ready_workspace(rig, hand, chat)
    theirs = job_from_elsewhere(chat)
    await send.built(theirs, "started", template_id=new_id())
    await send.built(theirs)
    await hand.pump()

    for _ in range(3):
        await hand.let_time_pass(GRACE)

    assert len(rig.jobs()) == 1
    assert await listed_orphans(rig, chat) == [theirs["workspace_id"]]
    assert len(errors) == 2, "that it is there, and that nobody can stop it; not time and again"
    assert "nobody here can stop" in errors[1]
    await send.built(
        job_from_elsewhere(chat, workspace_id=theirs["workspace_id"], build_number=2)
        | {"transition": "stop"}
    )
    await hand.pump()
    assert await listed_orphans(rig, chat) == []
    await rig.check(chat)


async def test_an_orphan_is_stopped_once_its_template_becomes_known(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await given_ready_workspace(rig, hand, chat)
    theirs = job_from_elsewhere(chat)
    await send.built(theirs)
    await hand.pump()
    await hand.let_time_pass(GRACE)
    assert len(rig.jobs()) == 1

    await send.built(theirs, "started", template_id=TEMPLATE_ID)
    await hand.pump()
    await hand.let_time_pass(0)

    assert rig.job["workspace_id"] == theirs["workspace_id"]
    await rig.check(chat)


async def test_an_orphan_that_cannot_be_stopped_does_not_block_others(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """Each orphan has its own grace time, and is handled when that is over."""
    await given_ready_workspace(rig, hand, chat)
    found = [job_from_elsewhere(chat) for _ in range(4)]
    for number, theirs in enumerate(found):
        template = {"template_id": TEMPLATE_ID} if number % 2 else {}
        await send.built(theirs, "started", **template)
        await send.built(theirs)
        await hand.let_time_pass(60)

    seen: list[list[str]] = []
    for _ in range(6):
        seen.append([j["workspace_id"] for j in rig.jobs() if j["transition"] == "stop"])
        await hand.let_time_pass(60 if len(seen) > 1 else GRACE - 4 * 60)

    first, second = found[1]["workspace_id"], found[3]["workspace_id"]
    assert seen == [[], [], [], [first], [first], [first, second]]
    assert await listed_orphans(rig, chat) == [found[0]["workspace_id"], found[2]["workspace_id"]]
    await rig.check(chat)


@pytest.mark.parametrize("bound", ["before", "after"])
async def test_a_workspace_of_another_chat_is_never_stopped(
    rig: Rig, hand: Hand, send: Senders, chat: str, bound: str, errors: list[str]
) -> None:
    """A provisioner reports the workspace under the wrong chat."""
    owner = new_id()
    await given_ready_workspace(rig, hand, chat)
    theirs = job_from_elsewhere(owner)
    wrong = {**theirs, "chat_id": chat}
    for job in (theirs, wrong) if bound == "before" else (wrong, theirs):
        await send.built(job, "started", template_id=TEMPLATE_ID)
        await send.built(job, agents=())
        await hand.pump()
    assert rig.state(owner)["state"] == "ready"
    assert await listed_orphans(rig, chat) == []

    await hand.let_time_pass(GRACE)
    await hand.let_time_pass(DAY)

    assert len(rig.jobs()) == 1
    assert "nobody here can stop" not in " ".join(errors)
    await rig.check(chat)
    await rig.check(owner)


async def test_a_workspace_made_elsewhere_becomes_current_when_the_chats_own_is_deleted(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    mine, theirs = await given_ready_workspace(rig, hand, chat), job_from_elsewhere(chat)
    await send.built(theirs, "started", template_id=TEMPLATE_ID, workspace_name="theirs")
    await send.built(theirs)
    await send.deleted(mine)
    await hand.pump()
    assert rig.path(chat)[-3:] == ["none", "building", "agent_connecting"]
    assert rig.state(chat)["workspace"]["name"] == "theirs"
    assert await listed_orphans(rig, chat) == []

    stop = job_from_elsewhere(
        chat, workspace_id=theirs["workspace_id"], build_number=2, transition="stop"
    )
    await send.built(stop, "started")
    await hand.pump()

    assert rig.state(chat)["state"] == "stopping"
    await hand.let_time_pass(DAY)
    assert rig.jobs() == [mine]
    await rig.check(chat)


async def test_orphans_are_stopped_although_nats_lost_its_timers(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    stop, _ = await given_replaced_workspace(rig, hand, chat)
    await send.built(stop, "failed")
    await hand.pump()
    rig.server.stop(lose=True)
    rig.server.start()

    started = rig.hand()
    await started.prepare()
    await started.let_time_pass(0)
    assert rig.jobs() == []
    await started.let_time_pass(GRACE + 60)

    assert (rig.job["workspace_id"], rig.job["build_number"]) == (stop["workspace_id"], 3)


async def test_only_one_of_several_workers_requests_the_stop_of_an_orphan(
    rig: Rig, chat: str
) -> None:
    one, other = rig.hand(), rig.hand()
    stop, _ = await given_replaced_workspace(rig, one, chat)
    await rig.senders.built(stop, "failed")
    await one.pump()
    rig.clock.advance(RETRY)
    fired = one.take()
    await other.work(fired)

    await one.work(fired)

    assert [job["build_number"] for job in rig.jobs() if job["transition"] == "stop"] == [2, 3]
    await rig.check(chat)


async def test_a_failed_delete_of_a_replaced_workspace_is_reported_and_repeated(
    rig: Rig, hand: Hand, send: Senders, chat: str, errors: list[str]
) -> None:
    """The delete that its chat requested had failed, so create_workspace made a new workspace."""
    old = await given_ready_workspace(rig, hand, chat, agents=())
    await send.delete(chat)
    await hand.pump()
    await send.built(rig.job, "failed")
    await hand.pump()
    new = await given_ready_workspace(rig, hand, chat, "again")
    assert new["workspace_id"] != old["workspace_id"]

    delete = [job for job in rig.jobs() if job["transition"] == "delete"][-1]
    assert (delete["workspace_id"], delete["build_number"]) == (old["workspace_id"], 3)
    (own,) = errors
    assert "the delete of its workspace" in own
    errors.clear()
    await send.built(delete, "failed")
    await hand.pump()

    assert len(errors) == 1
    assert f"workspace {old['workspace_id']} is left though no chat has it" in errors[0]
    assert await listed_orphans(rig, chat) == [old["workspace_id"]]
    await hand.let_time_pass(RETRY)
    again = rig.job
    assert (again["transition"], again["build_number"]) == ("delete", 4)
    assert again["workspace_id"] == old["workspace_id"]
    await send.built(again)
    await hand.pump()
    assert await listed_orphans(rig, chat) == []
    await rig.check(chat)
