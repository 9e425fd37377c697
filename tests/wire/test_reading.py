"""Chats, logs, events and archives as operators, chat services and provisioners read them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

from tests.rigs import shapes
from tests.rigs.client import Chat
from tests.rigs.messages import new_id
from tests.rigs.world import World


async def test_get_chat_returns_state_and_open_calls(world: World) -> None:
    chat = await world.chat()
    unknown = await world.service.rpc("get_chat", chat_id=chat.id)
    call, job = await world.building(chat)
    await chat.state("building")

    found = await world.service.rpc("get_chat", chat_id=chat.id)
    await world.provisioner.fail(job)

    assert (unknown["state"], unknown["version"], unknown["open_calls"]) == ("none", 0, [])
    (open_call,) = found.pop("open_calls")
    assert open_call.keys() == {"call_id", "tool", "asked_at"}
    assert (open_call["call_id"], open_call["tool"]) == (call, "create_workspace")
    assert shapes.is_time(open_call["asked_at"])
    assert "pool 'wire'" in found.pop(
        "notice"
    )  # the job was delivered, but no provisioner has reported that the build began
    assert found == chat.states.all[0]["data"]


async def test_list_chats_returns_chats_and_their_states(world: World) -> None:
    chats = [await world.chat() for _ in range(3)]
    for chat in chats:
        chat.owner_id = chats[0].owner_id
    _, job = await world.building(chats[0])
    await chats[0].state("building")
    await chats[1].call("list_templates")
    owner = {"owner_id": chats[0].owner_id}

    mine = await world.service.rpc("list_chats", **owner)
    built = await world.service.rpc("list_chats", state="building", **owner)
    others = await world.service.rpc("list_chats", organization_id=new_id())
    await world.provisioner.fail(job)

    assert "next" not in mine
    assert chats[0].id in [data["chat_id"] for data in mine["chats"]]
    for data in mine["chats"]:
        held_up = data.pop("notice", None)
        assert (held_up is not None) == (data["state"] == "building")
        shapes.state_changed(data, data["chat_id"])
    (found,) = built["chats"]
    assert "build 1" in found.pop("notice")
    assert found == chats[0].states.all[0]["data"]
    assert others == {"chats": []}


async def test_list_chats_has_pages(world: World) -> None:
    first = await world.chat()
    chats = sorted(new_id() for _ in range(130))
    for chat_id in chats:
        chat = Chat(world.service, chat_id, "chatd")
        chat.owner_id, chat.organization_id = first.owner_id, first.organization_id
        await chat.ask("list_templates")
    last = await world.chat(chats[-1])
    last.owner_id = first.owner_id
    await last.call("list_templates")

    found: list[str] = []
    page: dict[str, Any] = {}
    while not page or "next" in page:
        more = {"cursor": page["next"]} if page else {}
        page = await world.service.rpc("list_chats", owner_id=first.owner_id, **more)
        found += [data["chat_id"] for data in page["chats"]]

    assert sorted(found) == chats


async def test_read_events_returns_events_and_their_outcomes(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    repeated = await agent.report_disconnected()
    subject = f"workspaced.in.agent.{chat.id}.{agent.id}"
    await agent.publish(subject, json.dumps(repeated).encode())
    await chat.call("list_templates")

    page = await world.service.rpc("read_events", chat_id=chat.id)
    entries = page["events"]
    rest = await world.service.rpc("read_events", chat_id=chat.id, after=entries[2]["seq"])

    for entry in entries:
        shapes.log_entry(entry)
    assert [entry["seq"] for entry in entries] == sorted({entry["seq"] for entry in entries})
    assert rest["events"] == entries[3:]
    assert "next" not in page
    moved = [entry for entry in entries if entry["outcome"] in {"moved", "changed"}]
    assert [entry["version"] for entry in moved] == [e["data"]["version"] for e in chat.states.all]
    assert [e["outcome"] for e in entries if e["event"]["id"] == repeated["id"]] == [
        "changed",
        "repeat",
    ]
    assert all(entry["version"] is None for entry in entries if entry not in moved)


async def test_only_the_provisioner_receives_a_secret(world: World) -> None:
    chat = await world.chat()
    args = {"template_id": world.rich, "parameters": {"word": "w", "secret": "swordfish"}}
    call = await chat.ask("create_workspace", args)
    job = await world.provisioner.job(chat)
    await world.provisioner.succeed(job)
    await chat.answer(call)

    page = await world.service.ask("read_events", {"chat_id": chat.id})
    shown = json.dumps([*chat.states.all, *chat.results.all])

    assert job.parameters["secret"] == "swordfish"
    assert b"swordfish" not in page
    assert "swordfish" not in shown


async def test_read_events_has_pages(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    output = "x" * 32_000 + "\n"
    for number in range(1, 121):
        await world.provisioner.log(job.data, number, output)
    await world.provisioner.fail(job)

    found: list[int] = []
    page: dict[str, Any] = {}
    while not page or "next" in page:
        more = {"after": page["next"]} if page else {}
        asked = {"chat_id": chat.id, "build_id": job.build_id, **more}
        page = await world.service.rpc("read_log", **asked)
        found += [line["sequence"] for line in page["lines"]]

    assert found == list(range(1, 121))


async def test_read_events_has_smaller_pages_for_large_events(world: World) -> None:
    chat = await world.chat()
    large = {"template_id": "x" * 200_000}
    for _ in range(8):
        await chat.call_error("create_workspace", large)

    found: list[int] = []
    page: dict[str, Any] = {}
    while not page or "next" in page:
        more = {"after": page["next"]} if page else {}
        page = await world.service.rpc("read_events", chat_id=chat.id, **more)
        found += [entry["seq"] for entry in page["events"]]

    assert len(found) == 8
    assert found == sorted(set(found))


async def test_the_archive_of_a_template_matches_the_digest_in_the_job(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    await world.provisioner.fail(job)

    pieces: list[bytes] = []
    while not pieces or pieces[-1]:
        offset = sum(map(len, pieces))
        asked = {"version_id": job.template["version_id"], "offset": offset}
        pieces.append(await world.provisioner.ask("template_archive", asked))
    archive = b"".join(pieces)

    assert len(archive) == job.template["archive"]["size"]
    assert hashlib.sha256(archive).hexdigest() == job.template["archive"]["sha256"]
    with tarfile.open(fileobj=io.BytesIO(archive)) as folder:
        assert {"template.toml", "README.md"} <= set(folder.getnames())
