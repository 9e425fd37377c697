"""Keys and connections, with both adapters: who may connect, and which connections must close."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from statemachine.chat import Chat
from statemachine.events import Transition
from statemachine.store import CONNECTIONS_PER_KEY, Changes, ClientConnection, Credential, Wanted
from statemachine.workspace import Build, WorkspaceRecord
from tests.contract.stores import NOW, Shelf, uid, write

IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)


def built(chat_id: str, build_id: str, number: int = 1) -> Chat:
    build = Build(id=build_id, number=number, transition=Transition.START, started_at=NOW)
    return Chat(chat_id=chat_id, current=WorkspaceRecord(id=uid(), build=build))


def agent_of(chat: Chat, **more: object) -> Credential:
    assert chat.build is not None
    assert chat.current is not None
    credential = Credential(
        "agent", (chat.chat_id,), IN_AN_HOUR, chat.current.id, chat.build.id, uid()
    )
    return replace(credential, **more)  # type: ignore[arg-type]


async def test_a_credential_is_read_as_it_was_issued(shelf: Shelf) -> None:
    made = Credential("provisioner", (), IN_AN_HOUR, name="box", pool="gpu")

    await shelf.store.credentials.issue("P", made)

    assert await shelf.store.credentials.get("P") == (made, None)


async def test_a_revoked_key_stays_revoked_and_is_expired(shelf: Shelf) -> None:
    await shelf.store.credentials.issue("O", Credential("operator", (), IN_AN_HOUR))

    assert await shelf.store.credentials.revoke("O")
    first = await shelf.store.credentials.get("O")
    assert await shelf.store.credentials.revoke("O")

    assert first == await shelf.store.credentials.get("O")
    assert first is not None
    credential, _ = first
    assert credential.revoked_at is not None
    assert credential.expires_at <= credential.revoked_at
    assert not await shelf.store.credentials.revoke("stranger")


async def test_a_provisioners_name_is_bound_to_one_pool_for_ever(shelf: Shelf) -> None:
    assert await shelf.store.credentials.bind_provisioner("box", "gpu") == "gpu"
    assert await shelf.store.credentials.bind_provisioner("box", "cpu") == "gpu"
    found = await shelf.store.look(Wanted(provisioners={"box", "other"}))

    assert found.pools == {"box": "gpu"}


async def test_keys_are_listed_by_page_and_expired_ones_on_request(shelf: Shelf) -> None:
    for key in ("A", "B", "C"):
        await shelf.store.credentials.issue(
            key, Credential("frontend", (uid(),), IN_AN_HOUR, name=key)
        )
    await shelf.store.credentials.revoke("B")
    credential, _ = await shelf.store.credentials.get("A") or (None, None)
    assert credential is not None
    await shelf.store.credentials.record_connection(
        "A", ClientConnection("S", 1), "one", credential
    )

    now = await shelf.store.credentials.find()
    everything = await shelf.store.credentials.find(include_expired=True, limit=2)
    rest = await shelf.store.credentials.find(include_expired=True, after=everything[-1].public_key)

    assert [(k.public_key, k.connections) for k in now] == [("A", 1), ("C", 0)]
    assert [k.public_key for k in everything + rest] == ["A", "B", "C"]


async def test_an_agents_key_is_listed_while_its_build_is_the_newest(shelf: Shelf) -> None:
    chat, gone = built(uid(), uid()), built(uid(), uid())
    await write(shelf.store, Changes(chats=[chat]))
    for key, of in (("A", agent_of(chat)), ("B", agent_of(gone))):
        await shelf.store.credentials.issue(key, of)
    await shelf.store.credentials.issue("F", Credential("frontend", (gone.chat_id,), IN_AN_HOUR))

    before = await shelf.store.credentials.find()
    await write(shelf.store, Changes(chats=[built(chat.chat_id, uid(), 2)]))
    after = await shelf.store.credentials.find()
    everything = await shelf.store.credentials.find(include_expired=True)

    assert [(k.public_key, k.superseded) for k in before] == [("A", False), ("F", False)]
    assert [k.public_key for k in after] == ["F"]
    assert [(k.public_key, k.superseded) for k in everything] == [
        ("A", True),
        ("B", True),
        ("F", False),
    ]


async def test_only_connections_of_a_revoked_key_become_invalid(shelf: Shelf) -> None:
    made = Credential("frontend", (uid(),), IN_AN_HOUR)
    for number, key in enumerate(("A", "B", "A"), 1):
        await shelf.store.credentials.issue(key, made)
        assert (
            await shelf.store.credentials.record_connection(
                key, ClientConnection("S", number), "one", made
            )
            == []
        )

    assert await shelf.store.credentials.invalid_connections() == []
    await shelf.store.credentials.revoke("A")

    assert set(await shelf.store.credentials.invalid_connections()) == {
        ClientConnection("S", 1),
        ClientConnection("S", 3),
    }
    assert await shelf.store.credentials.invalid_connections(public_key="B") == []
    first = await shelf.store.credentials.invalid_connections(public_key="A", limit=1)
    assert await shelf.store.credentials.invalid_connections(after=first[0]) == [
        ClientConnection("S", 3)
    ]
    await shelf.store.credentials.forget_connections(
        [ClientConnection("S", 1), ClientConnection("S", 3)]
    )
    assert await shelf.store.credentials.invalid_connections() == []


async def test_an_agents_connection_becomes_invalid_when_its_build_is_superseded(
    shelf: Shelf,
) -> None:
    chat, other = built(uid(), uid()), built(uid(), uid())
    await write(shelf.store, Changes(chats=[chat, other]))
    for number, (key, of) in enumerate((("A", chat), ("B", other)), 1):
        await shelf.store.credentials.issue(key, agent_of(of))
        await shelf.store.credentials.record_connection(
            key, ClientConnection("S", number), "one", agent_of(of)
        )
    assert await shelf.store.credentials.invalid_connections() == []

    await write(shelf.store, Changes(chats=[built(chat.chat_id, uid(), 2)]))

    assert await shelf.store.credentials.invalid_connections() == [ClientConnection("S", 1)]
    assert await shelf.store.credentials.invalid_connections(chat_ids={chat.chat_id}) == [
        ClientConnection("S", 1)
    ]
    assert await shelf.store.credentials.invalid_connections(chat_ids={other.chat_id}) == []


@pytest.mark.parametrize("gone", ["workspace", "chat"])
async def test_the_connection_of_an_agent_without_build_is_invalid(shelf: Shelf, gone: str) -> None:
    chat = built(uid(), uid())
    await shelf.store.credentials.issue("A", agent_of(chat))
    if gone == "workspace":
        await write(shelf.store, Changes(chats=[Chat(chat_id=chat.chat_id)]))
    await shelf.store.credentials.record_connection(
        "A", ClientConnection("S", 1), "one", agent_of(chat)
    )

    assert await shelf.store.credentials.invalid_connections(chat_ids={chat.chat_id}) == [
        ClientConnection("S", 1)
    ]


async def test_recording_returns_a_keys_surplus_connections_oldest_last(shelf: Shelf) -> None:
    made = Credential("frontend", (uid(),), IN_AN_HOUR)
    await shelf.store.credentials.issue("A", made)
    too_many = [
        await shelf.store.credentials.record_connection(
            "A", ClientConnection("S", number), "one", made
        )
        for number in range(CONNECTIONS_PER_KEY + 2)
    ]

    assert too_many[:-2] == [[]] * CONNECTIONS_PER_KEY
    assert too_many[-2] == [ClientConnection("S", 0)]
    assert set(too_many[-1]) == {ClientConnection("S", 0), ClientConnection("S", 1)}


async def test_a_restarted_server_has_no_earlier_connections(shelf: Shelf) -> None:
    made = Credential("frontend", (uid(),), IN_AN_HOUR)
    await shelf.store.credentials.issue("A", made)
    for server, name in (("S1", "one"), ("T", "two"), ("S2", "one")):
        await shelf.store.credentials.record_connection(
            "A", ClientConnection(server, 1), name, made
        )

    await shelf.store.credentials.forget_earlier_server("one", "S2")
    await shelf.store.credentials.revoke("A")

    assert set(await shelf.store.credentials.invalid_connections()) == {
        ClientConnection("T", 1),
        ClientConnection("S2", 1),
    }
