"""A worker remembers chats, and looks them up when its memory is out of date."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from handlers.worker import remembered
from statemachine.store import Changes, Look, StoreUnavailableError, Wanted, Written
from tests.doubles.memory_store import MemoryStore
from tests.rigs.messages import new_id, tool_request
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each chat is looked up."""
    look = MemoryStore.look
    counts: Counter[str] = Counter()

    async def counting(self: MemoryStore, wanted: Wanted) -> Look:
        counts.update(wanted.chats)
        return await look(self, wanted)

    monkeypatch.setattr(MemoryStore, "look", counting)
    return counts


@pytest.fixture
async def job(rig: Rig, hand: Hand, send: Senders, chat: str) -> Any:
    """A start build of the chat, requested by `hand`, whose provisioner is known to it."""
    await send.create(chat)
    await hand.pump()
    first = rig.job
    await send.built(first, "started")
    await hand.pump()
    return first


async def finish(hand: Hand, send: Senders, job: Any) -> None:
    await send.built(job)
    await hand.pump()
    await send.agent(job, "connected", 1)
    await hand.pump()
    await send.agent(job, "ready", 2)
    await hand.pump()


async def test_the_facts_of_a_chat_are_applied_without_a_look(
    rig: Rig, hand: Hand, send: Senders, chat: str, job: Any, looks: Counter[str]
) -> None:
    looks.clear()
    await finish(hand, send, job)
    assert looks == {}
    assert rig.path(chat)[-1] == "ready"
    await rig.check(chat)


async def test_a_call_that_waits_is_answered_from_memory(
    rig: Rig, hand: Hand, send: Senders, chat: str, job: Any, looks: Counter[str]
) -> None:
    await send.create(chat, "second")
    await hand.pump()
    looks.clear()
    await finish(hand, send, job)
    assert looks == {}
    assert len([key for key in rig.results if key[0] == chat]) == 2
    await rig.check(chat)


async def test_a_chat_that_another_worker_has_written_is_looked_up(
    rig: Rig, hand: Hand, send: Senders, chat: str, job: Any, looks: Counter[str]
) -> None:
    await send.built(job)
    await rig.hand().pump()
    looks.clear()
    await send.agent(job, "connected", 1)
    await hand.pump()
    assert looks == {chat: 1}
    assert rig.path(chat)[-1] == "scripts_running"
    await rig.check(chat)


async def test_an_event_that_another_worker_has_applied_is_applied_once(
    rig: Rig, hand: Hand, send: Senders, chat: str, job: Any, looks: Counter[str]
) -> None:
    """Its sender published it again, and the other worker left the chat as this one remembers it."""
    await send.agent(job, "connected", 1, event_id="one")
    await hand.pump()
    looks.clear()
    rig.clock.advance(1)
    await send.agent(job, "connected", 1, event_id="one")
    await hand.pump()
    log = await rig.store.chats.log(chat)
    assert [entry["outcome"] for entry in log][-1] == "repeat"
    assert looks == {chat: 1}
    await rig.check(chat)


async def test_a_provisioner_that_was_bound_to_another_pool_meanwhile_is_not_believed(
    rig: Rig, hand: Hand, send: Senders, chat: str, job: Any
) -> None:
    await rig.store.credentials.bind_provisioner("local", "another")
    await send.built(job)
    await hand.pump()
    log = await rig.store.chats.log(chat)
    assert [entry["outcome"] for entry in log][-1] == "foreign"
    assert rig.path(chat)[-1] == "building"


async def test_a_dead_letter_beside_remembered_facts_does_not_answer_an_accepted_call(
    rig: Rig, hand: Hand, send: Senders, chat: str, job: Any
) -> None:
    """Only a look tells that the call was accepted."""
    other = new_id()
    await send.create(other, owner=new_id())
    await hand.pump()
    await send.built(job)
    request = tool_request("service", other, {"call_id": "c", "tool": "create_workspace"})
    await send.publish(request)
    await hand.pump()
    assert len(rig.dead) == 1
    assert [key for key in rig.results if key[0] == other] == []


async def test_the_database_is_asked_for_its_time_after_a_while(
    rig: Rig, hand: Hand, send: Senders, chat: str, job: Any, looks: Counter[str]
) -> None:
    looks.clear()
    rig.clock.advance(remembered.LONGEST + 1)
    await send.built(job)
    await hand.pump()
    assert looks == {chat: 1}


async def test_nothing_is_remembered_after_a_failed_write(
    rig: Rig,
    hand: Hand,
    send: Senders,
    chat: str,
    job: Any,
    looks: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = MemoryStore.write

    async def fail(self: MemoryStore, changes: Changes) -> Written:
        monkeypatch.setattr(MemoryStore, "write", write)
        await write(self, changes)
        raise StoreUnavailableError("the answer was lost")

    monkeypatch.setattr(MemoryStore, "write", fail)
    looks.clear()
    await finish(hand, send, job)
    assert looks[chat] == 1
    assert rig.path(chat)[-1] == "ready"
    await rig.check(chat)


async def test_a_memory_that_is_often_out_of_date_is_not_used(
    rig: Rig, hand: Hand, send: Senders, looks: Counter[str]
) -> None:
    other = rig.hand()
    tried = Counter[bool]()
    for _ in range(12):
        chat = new_id()
        await send.create(chat, owner=new_id())
        await hand.pump()
        job = rig.job
        await send.built(job, "started")
        await other.pump()
        tried[hand.worker._remembered._out_of_date > remembered.TOLERATED] += 1
        await send.built(job)
        await hand.pump()
    assert tried[True] > 1
    assert tried[False] > 1
