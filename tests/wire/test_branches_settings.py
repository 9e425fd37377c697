"""What operators set while all runs (C5d, C7), and values that nobody else may read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from nats.aio.msg import Msg

from tests.rigs.client import Chat, Job
from tests.rigs.world import Deployment, World
from tests.wire.branches import (
    CREATE,
    START,
    STOP,
    create,
    ended,
    jobs,
    result,
    stop_ended,
    stopping,
)

TTL, ALLOWLIST = "chat_workspace_ttl", "chat_template_allowlist"
Put = Callable[[str, str], int]


@pytest.fixture
def put(place: Deployment) -> Iterator[Put]:
    """Change a setting with the command line; return its status. All are put back at the end."""
    assert place.up is not None
    running, changed = place.up, set()

    def put(key: str, value: str) -> int:
        changed.add(key)
        return running.run("settings", "set", key, value).returncode

    yield put
    for key in changed:
        assert running.run("settings", "set", key, "").returncode == 0


async def test_c5d_only_what_is_on_the_allowlist(world: World, put: Put) -> None:
    chat = await world.chat()
    assert put(ALLOWLIST, f" {world.rich.upper()} ,{chat.id}") == 0

    page = await chat.call("list_templates")
    text = await chat.call_error(CREATE, {"template_id": world.plain})
    not_found = await chat.call_error("read_template", {"template_id": world.plain})
    read = await chat.call("read_template", {"template_id": world.rich})
    call = await create(world, chat, template_id=world.rich, parameters={"word": "w"})
    await world.provisioner.succeed(await world.provisioner.job(chat))

    assert [template["id"] for template in page["templates"]] == [world.rich]
    assert text
    assert "not found" in not_found
    assert read["template"]["id"] == world.rich
    assert (await result(chat, call))["created"] is True


async def test_c5d_what_runs_is_still_stopped_and_started(world: World, put: Put) -> None:
    chat = await world.chat()
    await ended(world, chat)
    assert put(ALLOWLIST, world.rich) == 0

    await stop_ended(world, chat)
    call = await chat.ask(START)
    await world.provisioner.succeed(await world.provisioner.job(chat, "start", 3))

    assert (await result(chat, call))["started"] is True


async def test_c7_the_lifetime_goes_with_the_job(world: World, put: Put) -> None:
    chat = await world.chat()
    assert put(TTL, "1h30m") == 0
    first = await ended(world, chat)
    stop = await stop_ended(world, chat)
    assert put(TTL, "2h") == 0
    call = await chat.ask(START)
    again = await world.provisioner.job(chat, "start", 3)
    await world.provisioner.succeed(again)
    await result(chat, call)

    # None of these is understood, so the last one stays.
    assert {put(TTL, "soon"), put(TTL, "1d"), put(TTL, "h")} == {2}
    kept = await ended(world, await world.chat())
    assert put(TTL, "0.5ms") == 0
    below = await ended(world, await world.chat())

    assert (first.ttl_ms, again.ttl_ms, kept.ttl_ms) == (5_400_000, 7_200_000, 7_200_000)
    assert "ttl_ms" not in below.data.keys() | stop.data.keys()


async def expired(world: World, chat: Chat, start: Job, number: int) -> None:
    """See the workers stop the workspace because its time is over."""
    stop = await world.provisioner.job(chat, "stop", number)
    envelope = await chat.states.first(lambda e: e["data"]["build"]["id"] == stop.build_id)
    await world.provisioner.succeed(stop)
    await chat.state("stopped")

    assert envelope["data"]["state"] == "stopping"
    assert envelope["data"]["cause"]["source"] == "/workspaced"
    assert envelope["data"]["cause"]["type"] == "workspaced.ttl_passed.v1"
    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, number)


async def test_c7_when_it_is_over_the_workers_stop_the_workspace(world: World, put: Put) -> None:
    bare, agent, elsewhere = await world.chat(), await world.chat(), await world.chat()
    before = await ended(world, elsewhere)  # made before there was a lifetime
    assert put(TTL, "1s") == 0
    first = await ended(world, bare)
    second, _ = await world.ready(agent)

    await expired(world, bare, first, 2)
    await expired(world, agent, second, 2)

    found = await bare.call(CREATE, {"template_id": world.plain})
    assert found["status"] == "stopped"
    assert elsewhere.now["state"] == "ready"
    assert await jobs(world, elsewhere) == [before]
    # It counts anew from the end of the next start.
    call = await bare.ask(START)
    await world.provisioner.succeed(await world.provisioner.job(bare, "start", 3))
    await result(bare, call)
    stop = await world.provisioner.job(bare, "stop", 4)
    before = bare.now["version"]
    await world.provisioner.succeed(stop)
    await bare.state("stopped", above=before)


async def test_c7_a_stop_that_fails_does_not_lengthen_it(world: World, put: Put) -> None:
    chat = await world.chat()
    assert put(TTL, "1s") == 0
    start = await ended(world, chat)

    _, stop = await stopping(world, chat)
    await world.provisioner.fail(stop)

    await expired(world, chat, start, 3)


@pytest.fixture
async def overheard(world: World) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Whatever passes on the bus from now on, with its subject."""
    heard: list[tuple[str, bytes]] = []

    async def hear(message: Msg) -> None:
        heard.append((message.subject, message.data + str(message.headers).encode()))

    subscription = await world.operator.client.subscribe("workspaced.>", cb=hear)
    await world.operator.flush()
    yield heard
    await subscription.unsubscribe()


async def test_a_sensitive_value_is_in_the_jobs_only(
    world: World, overheard: list[tuple[str, bytes]]
) -> None:
    assert world.place.up is not None
    chat = await world.chat()
    nowhere = await chat.ask(START, {"parameters": {"secret": "swordfish-0"}})
    assert (await chat.answer(nowhere))["is_error"] is True
    values = {"word": "W", "secret": "swordfish-1", "Secret": "swordfish-misspelled"}
    wrong = await create(world, chat, template_id=world.rich, parameters=values)
    validations = (await result(chat, wrong))["validations"]
    values = {"word": "w", "secret": "swordfish-2"}
    call = await create(world, chat, template_id=world.rich, parameters=values)
    job = await world.provisioner.job(chat)
    during = await world.service.ask("get_chat", {"chat_id": chat.id})
    await world.provisioner.succeed(job)
    await result(chat, call)
    stop = await stop_ended(world, chat)
    call = await chat.ask(START, {"parameters": {"secret": "swordfish-3"}})
    again = await world.provisioner.job(chat, "start", 3)
    await world.provisioner.succeed(again)
    await result(chat, call)
    await chat.ask(STOP, {"parameters": {"secret": "swordfish-4"}})
    last = await world.provisioner.job(chat, "stop", 4)
    await world.provisioner.fail(last, "no luck")
    await chat.state("failed")

    secrets = [j.parameters["secret"] for j in (job, stop, again, last)]
    assert secrets == ["swordfish-2", "swordfish-2", "swordfish-3", "swordfish-3"]
    assert {fault["field"] for fault in validations} == {"word", "Secret"}
    exported = world.place.up.run("events", chat.id)
    assert exported.returncode == 0, exported.stderr
    shown = [
        during,
        await world.service.ask("get_chat", {"chat_id": chat.id}),
        await world.service.ask("read_events", {"chat_id": chat.id}),
        await world.service.ask("list_chats", {"owner_id": chat.owner_id}),
        await world.service.ask("read_template", _read(world, chat)),
        json.dumps([*chat.states.all, *chat.results.all]).encode(),
        world.place.up.process.output().encode(),
        exported.stdout.encode(),
    ]
    for text in shown:
        assert b"swordfish" not in text
    assert b"***" in shown[2]
    assert '"secret": "***"' in exported.stdout
    leaks = {subject for subject, body in overheard if b"swordfish" in body}
    assert leaks == {f"workspaced.in.tool.{chat.id}.chatd", "workspaced.job.wire"}


def _read(world: World, chat: Chat) -> dict[str, object]:
    return {"chat_id": chat.id, **chat.identity, "args": {"template_id": world.rich}}
