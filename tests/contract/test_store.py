"""The rules of every store for chats and their logs, tested with both adapters."""

from __future__ import annotations

from datetime import timedelta

from statemachine import events
from statemachine.chat import AgentFacts, Cause, Failure
from statemachine.states import FailureReason, State
from statemachine.store import Changes, Wanted
from statemachine.workspace import Build, BuiltAgent, Ending, Outcome, QuotaUse, WorkspaceRecord
from tests.contract.stores import (
    NOW,
    Shelf,
    digest,
    entry,
    owned,
    uid,
    write,
)


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
    assert (await shelf.store.look(Wanted({chat.chat_id}))).chats == {chat.chat_id: chat}
    assert await shelf.store.chats.get_many([uid(), chat.chat_id]) == [chat]


async def test_many_chats_are_read_at_once(shelf: Shelf) -> None:
    chats = [owned(uid(), uid(), uid(), seq=n) for n in range(3)]
    await write(shelf.store, Changes(chats=chats))

    found = await shelf.store.chats.get_many([chats[2].chat_id, uid(), chats[0].chat_id])

    assert sorted(chat.seq for chat in found) == [0, 2]
    assert await shelf.store.chats.get_many([]) == []


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
        new=[one, two],
    )

    asked = [(one, digest("a")), (one, digest("b")), (two, digest("c"))]
    known = (await shelf.store.look(Wanted({one, two}, asked))).known

    assert known & set(asked) == {(one, digest("a"))}
