"""The rules of every store for transactions of chats, tested with both adapters."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from msgspec import structs

from statemachine import events
from statemachine.calls import StoredCall
from statemachine.chat import AgentFacts, Cause, Failure
from statemachine.states import FailureReason, State
from statemachine.store import CallKey, Changes, OutboxMessage
from statemachine.workspace import Build, BuiltAgent, Ending, Outcome, QuotaUse, WorkspaceRecord
from tests.contract.stores import (
    NOW,
    Shelf,
    call,
    digest,
    entry,
    key,
    outgoing,
    owned,
    uid,
    write,
)


async def test_locking_a_new_chat_creates_it(shelf: Shelf) -> None:
    one, two = sorted((uid(), uid()))
    assert await shelf.store.chats.get(one) is None

    async with shelf.store.transaction() as tx:
        found = await tx.lock({two, one})

    assert list(found) == [one, two]
    assert {chat.version for chat in found.values()} == {0}
    assert await shelf.store.chats.get(one) == found[one]


async def test_a_snapshot_is_read_as_it_was_written(shelf: Shelf) -> None:
    agent = BuiltAgent(id=uid(), name="main", display_order=-1)
    build = Build(
        id=uid(),
        number=2**53 - 1,
        transition=events.Transition.START,
        started_at=NOW,
        parameters={"a": "\\u0041 \u2028"},
        outcome=Outcome(
            ending=Ending.FAILED,
            agents=(agent,),
            quota=QuotaUse(credits_consumed=1e22, budget=0.1),
        ),
    )
    current = WorkspaceRecord(
        id=uid(),
        name="n",
        owner_name="ä",
        template_id=uid(),
        build=build,
        chosen=agent,
        superseded=(uid(),),
    )
    chat = owned(
        uid(),
        uid(),
        uid(),
        version=7,
        seq=9,
        state=State.SCRIPTS_TIMED_OUT,
        previous_state=State.SCRIPTS_RUNNING,
        current=current,
        agents=(
            AgentFacts(
                id=agent.id,
                workspace_id=uid(),
                build_id=uid(),
                highest_sequence=2**63 - 1,
                reported_connected=False,
                lifecycle=events.Lifecycle.READY,
                lost_at=0,
            ),
        ),
        failure=Failure(reason=FailureReason.STARTUP_SCRIPTS_TIMEOUT, message="m"),
        deadline=NOW,
        generation=3,
        cause=Cause(source="/chat/s", id="i", type="t"),
        open_calls=1,
    )

    await write(shelf.store, Changes(chats=[chat]))

    assert await shelf.store.chats.get(chat.chat_id) == chat
    async with shelf.store.transaction() as tx:
        assert await tx.lock({chat.chat_id}) == {chat.chat_id: chat}
    assert await shelf.store.chats.with_timers() == [chat]
    assert await shelf.store.chats.with_timers(after=chat.chat_id) == []


async def test_a_chat_without_deadline_has_no_timer(shelf: Shelf) -> None:
    chat = owned(uid(), uid(), uid(), deadline=NOW)
    await write(shelf.store, Changes(chats=[chat]))

    await write(shelf.store, Changes(chats=[structs.replace(chat, deadline=None)]))

    assert await shelf.store.chats.with_timers() == []


async def test_a_transaction_that_raises_is_rolled_back(shelf: Shelf) -> None:
    chat_id, asked, workspace, owner = uid(), call(uid()), uid(), uid()
    changes = Changes(
        chats=[owned(chat_id, uid(), owner, version=1)],
        entries=[(chat_id, entry(1, chat_id))],
        identities=[(chat_id, digest("a"))],
        calls=[StoredCall(asked, None)],
        cancellations=[CallKey(chat_id, "x")],
        names=[(workspace, chat_id, owner, "Name")],
        outbox=[outgoing(chat_id, "a")],
    )

    async def fail() -> None:
        async with shelf.store.transaction() as tx:
            await tx.lock({chat_id, asked.chat_id})
            await tx.write(changes)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert await shelf.store.chats.get(chat_id) is None
    async with shelf.store.transaction() as tx:
        assert (await tx.lock({chat_id}))[chat_id].version == 0
        keys = {key(asked), CallKey(chat_id, "x")}
        found = await tx.prefetch([(chat_id, digest("a"))], keys, {chat_id})
        assert found == (set(), {}, {chat_id: []}, set(), {})
        assert await tx.workspace_names({owner}) == {owner: set()}
        assert await tx.unpublished({chat_id}) == []
    assert await shelf.store.chats.log(chat_id) == []


async def test_a_transaction_that_waited_for_a_lock_sees_what_the_other_wrote(shelf: Shelf) -> None:
    """Identities above all: two workers that have the same event must not both apply it."""
    chat_id, asked = uid(), asyncio.Event()
    await write(shelf.store, Changes(), lock=[chat_id])

    async def second() -> tuple[int, set[tuple[str, bytes]]]:
        async with shelf.store.transaction() as tx:
            asked.set()
            chats = await tx.lock({chat_id})
            return chats[chat_id].version, (
                await tx.prefetch([(chat_id, digest("e"))], set(), set())
            ).known

    async with shelf.store.transaction() as tx:
        await tx.lock({chat_id})
        other = asyncio.create_task(second())
        if shelf.url is not None:  # the memory store has no concurrent transactions
            await asked.wait()
            await shelf.until_one_waits()
        assert not other.done()
        await tx.write(
            Changes(
                chats=[owned(chat_id, uid(), uid(), version=5)],
                identities=[(chat_id, digest("e"))],
            )
        )

    assert await other == (5, {(chat_id, digest("e"))})


async def test_concurrent_transactions_create_a_chat_once(shelf: Shelf) -> None:
    chat_id = uid()

    async def count() -> None:
        async with shelf.store.transaction() as tx:
            chat = (await tx.lock({chat_id}))[chat_id]
            await tx.write(Changes(chats=[structs.replace(chat, version=chat.version + 1)]))

    await asyncio.gather(*(count() for _ in range(8)))

    chat = await shelf.store.chats.get(chat_id)
    assert chat is not None
    assert chat.version == 8


async def test_transactions_with_overlapping_chats_do_not_deadlock(shelf: Shelf) -> None:
    chats = [uid() for _ in range(6)]
    # The chats exist before the race. Creating one is a race of its own, in which lock tries again.
    await write(shelf.store, Changes(), lock=chats)

    async def count(mine: list[str]) -> None:
        async with shelf.store.transaction() as tx:
            found = await tx.lock(set(mine))
            await tx.write(
                Changes(
                    chats=[
                        structs.replace(found[chat_id], version=found[chat_id].version + 1)
                        for chat_id in mine
                    ]
                )
            )

    orders = (chats, chats[::-1], chats[3:] + chats[:3], chats[::2], chats[1::2])
    await asyncio.gather(*(count(list(order)) for order in orders * 4))

    found = [await shelf.store.chats.get(chat_id) for chat_id in chats]
    assert [chat.version for chat in found if chat] == [16] * 6


async def test_the_time_of_a_transaction_is_read_after_the_wait_for_the_lock(shelf: Shelf) -> None:
    """Otherwise limits would begin, and log entries be dated, before the other's writes."""
    first, last = sorted((uid(), uid()))
    await write(shelf.store, Changes(), lock=[first, last])

    async def second() -> bool:
        async with shelf.store.transaction() as tx:
            await tx.lock({first, last})
            return tx.now >= released

    async with shelf.store.transaction() as tx:
        await tx.lock({last})
        other = asyncio.create_task(second())
        if shelf.url is not None:
            await shelf.until_one_waits()
        async with shelf.store.transaction() if shelf.url else shelf.nothing() as another:
            if another is not None:
                await another.lock(set())
                released = another.now
            else:
                released = shelf.shift.now()

    assert await other


async def test_the_log_is_read_in_order_and_by_page(shelf: Shelf) -> None:
    chat_id = uid()
    entries = [entry(n, chat_id, at=NOW + timedelta(seconds=n)) for n in (1, 2, 3, 4, 5)]
    await write(shelf.store, Changes(entries=[(chat_id, e) for e in entries[:3]]))
    await write(shelf.store, Changes(entries=[(chat_id, e) for e in entries[3:]]))

    everything = await shelf.store.chats.log(chat_id)
    page = await shelf.store.chats.log(chat_id, after=1, limit=2)

    assert [e["seq"] for e in everything] == [1, 2, 3, 4, 5]
    assert [e["seq"] for e in page] == [2, 3]
    assert everything[0] == {
        "seq": 1,
        "event": {
            "specversion": "1.0",
            "id": entries[0].event.id,
            "source": "/chat/service",
            "type": "workspaced.delete_requested.v1",
            "subject": chat_id,
            "time": "2030-01-02T03:04:05.678901Z",
            "datacontenttype": "application/json",
            "data": {"reason": 'it said "ä\N{SNOWMAN}" \\'},
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
        "outcome": "kept",
        "state_before": "none",
        "state_after": "none",
        "version": None,
        "at": "2030-01-02T03:04:06.678901Z",
    }


async def test_an_event_is_known_in_its_chat_only(shelf: Shelf) -> None:
    one, two = uid(), uid()
    await write(
        shelf.store,
        Changes(identities=[(one, digest("a")), (two, digest("b"))]),
        lock=[one, two],
    )

    async with shelf.store.transaction() as tx:
        await tx.lock({one, two})
        asked = [(one, digest("a")), (one, digest("b")), (two, digest("c"))]
        known = (await tx.prefetch(asked, set(), set())).known

    assert known & set(asked) == {(one, digest("a"))}


async def test_an_outbox_row_stays_until_it_is_deleted_as_published(shelf: Shelf) -> None:
    chat_id, other = uid(), uid()
    rows = [
        outgoing(chat_id, "a", version=3),
        outgoing(other, "b", lane=3),
        outgoing(chat_id, "c", lane=2, due=NOW),
    ]

    written = await write(shelf.store, Changes(outbox=rows), lock=[chat_id, other])

    assert [(r.message_id, r.payload, r.version, r.due) for r in written] == [
        (r.message_id, r.payload, r.version, r.due) for r in rows
    ]
    assert len({row.id for row in written}) == 3
    assert await unpublished(shelf, chat_id) == [written[0], written[2]]
    await shelf.store.delete_published([written[0].id, 10**9])
    assert await unpublished(shelf, chat_id) == [written[2]]
    assert await unpublished(shelf, chat_id, other) == [written[1], written[2]]
    assert await unpublished(shelf) == []


async def unpublished(shelf: Shelf, *chats: str) -> list[OutboxMessage]:
    async with shelf.store.transaction() as tx:
        await tx.lock(set(chats))
        return await tx.unpublished(set(chats))
