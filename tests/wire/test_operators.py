"""Operators alone may list running workspaces that belong to no chat."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from tests.rigs.client import Chat, ServiceError
from tests.rigs.messages import Event, new_id
from tests.rigs.shapes import is_time
from tests.rigs.world import World

START, STOP = "start", "stop"


async def orphans_of(world: World, chat: Chat) -> list[Event]:
    """Return the orphans of the chat, from all pages."""
    found: list[Event] = []
    page: dict[str, Any] = {}
    while not page or "next" in page:
        more = {"cursor": page["next"]} if page else {}
        page = await world.operator.rpc("list_orphans", **more)
        found += page["workspaces"]
    return [entry for entry in found if entry["chat_id"] == chat.id]


async def wait_until_logged(world: World, chat: Chat, fact: Event) -> None:
    """Wait until a fact is in the chat's log. A fact without effect publishes nothing."""
    await chat.call("list_templates")
    while True:
        page = await world.service.rpc("read_events", chat_id=chat.id)
        if fact["id"] in [entry["event"]["id"] for entry in page["events"]]:
            return


async def test_a_replaced_workspace_whose_stop_failed_is_an_orphan(world: World) -> None:
    chat = await world.chat()
    first, agent = await world.ready(chat)
    await agent.report_disconnected()
    await chat.states.first(lambda e: (e["data"]["agent"] or {}).get("status") == "disconnected")
    await chat.ask("create_workspace", {"template_id": world.plain})
    stop = await world.provisioner.job(chat, STOP)
    before = await orphans_of(world, chat)

    failed = await world.provisioner.fail(stop)
    await wait_until_logged(world, chat, failed)
    (listed,) = await orphans_of(world, chat)

    assert [(entry["id"], entry["state"]) for entry in before] == [(first.workspace_id, "stopping")]
    assert is_time(listed.pop("since"))
    assert listed == {
        "id": first.workspace_id,
        "pool": "wire",
        "state": "running",
        "name": first.workspace_name,
        "owner_name": "ann",
        "chat_id": chat.id,
        "build_id": stop.build_id,
        "build_number": 2,
    }


async def test_a_replaced_workspace_is_deleted_by_its_id(world: World) -> None:
    chat = await world.chat()
    first, agent = await world.ready(chat)
    await agent.report_disconnected()
    await chat.states.first(lambda e: (e["data"]["agent"] or {}).get("status") == "disconnected")
    await chat.ask("create_workspace", {"template_id": world.plain})
    await world.provisioner.succeed(await world.provisioner.job(chat, STOP))
    version = chat.now["version"]
    assert world.deployment.up is not None
    command = partial(world.deployment.up.run, "workspace", "delete")

    planned = await asyncio.to_thread(command, "--workspace", first.workspace_id, "--dry-run")
    requested = await asyncio.to_thread(command, "--workspace", first.workspace_id, "--reason", "b")
    delete = await world.provisioner.job(chat, "delete")
    (deleting,) = await orphans_of(world, chat)
    failed = await world.provisioner.fail(delete)
    await wait_until_logged(world, chat, failed)
    (left,) = await orphans_of(world, chat)
    again = await asyncio.to_thread(command, "--workspace", first.workspace_id)
    second = await world.provisioner.job(chat, "delete", delete.build_number + 1)
    ended = await world.provisioner.succeed(second)
    await wait_until_logged(world, chat, ended)
    unknown = await asyncio.to_thread(command, "--workspace", first.workspace_id)

    assert [one.returncode for one in (planned, requested, again, unknown)] == [0, 0, 0, 1]
    assert (delete.workspace_id, delete.build_number) == (first.workspace_id, 3)
    assert (deleting["state"], left["state"]) == ("stopping", "failed")
    assert await orphans_of(world, chat) == []
    # The chat and its new workspace have nothing to do with it.
    assert chat.now["version"] == version
    assert "there is no workspace" in unknown.stderr


async def test_an_external_workspace_is_listed_also_when_it_is_stopped(
    world: World,
) -> None:
    chat = await world.chat()
    await world.ready(chat)
    build = {"workspace_id": new_id(), "build_id": new_id(), "build_number": 4, "transition": START}
    stopped = build | {"build_id": new_id(), "build_number": 5, "transition": STOP}
    tell = world.provisioner.publish_event

    await tell("build_started", build, chat.id, workspace_name="stray")
    fact = await tell("build_succeeded", build, chat.id, template_version_id=new_id(), agents=[])
    await wait_until_logged(world, chat, fact)
    (listed,) = await orphans_of(world, chat)
    fact = await tell("build_succeeded", stopped, chat.id, template_version_id=new_id(), agents=[])
    await wait_until_logged(world, chat, fact)

    assert (listed["name"], listed["owner_name"], listed["state"]) == ("stray", None, "running")
    assert (listed["id"], listed["build_number"]) == (build["workspace_id"], 4)
    assert [entry["state"] for entry in await orphans_of(world, chat)] == ["stopped"]


async def test_a_workspace_of_another_chat_is_no_orphan(world: World) -> None:
    chat, other = await world.chat(), await world.chat()
    await world.ready(chat)
    job, _ = await world.ready(other)

    fact = await world.provisioner.publish_event(
        "build_succeeded", job, chat.id, template_version_id=new_id(), agents=[]
    )
    await wait_until_logged(world, chat, fact)

    assert await orphans_of(world, chat) == []


async def test_only_operators_may_list_orphans(world: World) -> None:
    await world.service.client.publish("workspaced.rpc.list_orphans", b"{}")
    await world.provisioner.client.publish("workspaced.rpc.list_orphans", b"{}")

    for party in (world.service, world.provisioner):
        refusal = await party.errors.first(lambda e: "list_orphans" in str(e).lower())
        assert "permissions violation" in str(refusal).lower()


async def test_an_invalid_cursor_is_an_error(world: World) -> None:
    with pytest.raises(ServiceError) as fault:
        await world.operator.rpc("list_orphans", cursor="first")

    assert fault.value.code == 400
