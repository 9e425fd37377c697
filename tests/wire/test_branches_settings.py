"""Settings that operators change at run time (C5d, C7), and parameters that only the provisioner may read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta

import pytest
from nats.aio.msg import Msg

from tests.rigs.client import Chat, Job, ServiceError
from tests.rigs.world import Deployment, World
from tests.wire import steps
from tests.wire.steps import CREATE, START, STOP

TTL, ALLOWLIST = "chat_workspace_ttl", "chat_template_allowlist"
RETENTION = "stopped_workspace_retention"
ChangeSetting = Callable[[str, str], int]


@pytest.fixture
def change_setting(deployment: Deployment) -> Iterator[ChangeSetting]:
    """Return a function that changes a setting with the command line and returns the exit status.

    Reset all changed settings at the end.
    """
    assert deployment.up is not None
    running, changed = deployment.up, set()

    def change_setting(key: str, value: str) -> int:
        changed.add(key)
        return running.run("settings", "set", key, value).returncode

    yield change_setting
    for key in changed:
        assert running.run("settings", "unset", key).returncode == 0


async def test_c5d_only_templates_on_the_allowlist_can_be_used(
    world: World, change_setting: ChangeSetting
) -> None:
    chat = await world.chat()
    assert change_setting(ALLOWLIST, f" {world.rich.upper()} ,{chat.id}") == 0

    page = await chat.call("list_templates")
    text = await chat.call_error(CREATE, {"template_id": world.plain})
    not_found = await chat.call_error("read_template", {"template_id": world.plain})
    read = await chat.call("read_template", {"template_id": world.rich})
    call = await steps.request_create(world, chat, template_id=world.rich, parameters={"word": "w"})
    await world.provisioner.succeed(await world.provisioner.job(chat))

    assert [template["id"] for template in page["templates"]] == [world.rich]
    assert text
    assert "not found" in not_found
    assert read["template"]["id"] == world.rich
    assert (await steps.successful_result(chat, call))["created"] is True


async def test_c5d_a_running_workspace_can_still_be_stopped_and_started(
    world: World, change_setting: ChangeSetting
) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    assert change_setting(ALLOWLIST, world.rich) == 0

    await steps.given_finished_stop(world, chat)
    call = await chat.ask(START)
    await world.provisioner.succeed(await world.provisioner.job(chat, "start", 3))

    assert (await steps.successful_result(chat, call))["started"] is True


async def test_c7_the_job_has_the_lifetime_as_ttl_ms(
    world: World, change_setting: ChangeSetting
) -> None:
    chat = await world.chat()
    assert change_setting(TTL, "1h30m") == 0
    first = await steps.given_finished_start(world, chat)
    stop = await steps.given_finished_stop(world, chat)
    assert change_setting(TTL, "2h") == 0
    call = await chat.ask(START)
    again = await world.provisioner.job(chat, "start", 3)
    await world.provisioner.succeed(again)
    await steps.successful_result(chat, call)

    # All of these are invalid, so the previous value stays in effect.
    assert {change_setting(TTL, "soon"), change_setting(TTL, "1w"), change_setting(TTL, "h")} == {2}
    kept = await steps.given_finished_start(world, await world.chat())
    assert change_setting(TTL, "0.5ms") == 0
    below = await steps.given_finished_start(world, await world.chat())

    assert (first.ttl_ms, again.ttl_ms, kept.ttl_ms) == (5_400_000, 7_200_000, 7_200_000)
    assert "ttl_ms" not in below.data.keys() | stop.data.keys()


async def assert_stopped_by_lifetime(world: World, chat: Chat, start: Job, number: int) -> None:
    """Check that workers stop the workspace when its lifetime is over."""
    stop = await world.provisioner.job(chat, "stop", number)
    envelope = await chat.states.first(lambda e: e["data"]["build"]["id"] == stop.build_id)
    await world.provisioner.succeed(stop)
    await chat.state("stopped")

    assert envelope["data"]["state"] == "stopping"
    assert envelope["data"]["cause"]["source"] == "/workspaced"
    assert envelope["data"]["cause"]["type"] == "workspaced.ttl_passed.v1"
    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, number)


async def test_c7_d3a_workers_stop_a_workspace_whose_lifetime_is_over(
    world: World, change_setting: ChangeSetting
) -> None:
    bare, agent, elsewhere = await world.chat(), await world.chat(), await world.chat()
    before = await steps.given_finished_start(
        world, elsewhere
    )  # created before the lifetime was set
    assert change_setting(TTL, "1s") == 0
    first = await steps.given_finished_start(world, bare)
    second, _ = await world.ready(agent)

    await assert_stopped_by_lifetime(world, bare, first, 2)
    await assert_stopped_by_lifetime(world, agent, second, 2)

    found = await bare.call(CREATE, {"template_id": world.plain})
    assert found["status"] == "stopped"
    assert elsewhere.now["state"] == "ready"
    assert await steps.all_jobs(world, elsewhere) == [before]
    # The next start begins a new lifetime.
    call = await bare.ask(START)
    await world.provisioner.succeed(await world.provisioner.job(bare, "start", 3))
    await steps.successful_result(bare, call)
    stop = await world.provisioner.job(bare, "stop", 4)
    before = bare.now["version"]
    await world.provisioner.succeed(stop)
    await bare.state("stopped", above=before)


async def test_c7_a_failed_stop_does_not_extend_the_lifetime(
    world: World, change_setting: ChangeSetting
) -> None:
    chat = await world.chat()
    assert change_setting(TTL, "3s") == 0
    start = await steps.given_finished_start(world, chat)

    _, stop = await steps.request_stop(world, chat)
    await world.provisioner.fail(stop)

    await assert_stopped_by_lifetime(world, chat, start, 3)


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_c7_d3b_a_stop_after_the_lifetime_that_does_not_succeed_is_tried_again_after_a_minute(
    world: World, change_setting: ChangeSetting, how: str
) -> None:
    chat = await world.chat()
    assert change_setting(TTL, "1s") == 0
    await steps.given_finished_start(world, chat)
    stop = await world.provisioner.job(chat, "stop")
    before = await chat.state("stopping")

    await steps.finish_build(world, stop, how)
    failed = await chat.states.first(lambda e: e["data"]["state"] == "failed")

    assert before["stops_at"] is None
    ended = datetime.fromisoformat(failed["time"])
    tried_again = datetime.fromisoformat(failed["data"]["stops_at"])
    assert tried_again == ended + timedelta(minutes=1)


async def test_c7b_d1b_d2a_d2b_calls_activity_and_keep_put_the_end_of_a_lifetime_off(
    world: World, change_setting: ChangeSetting
) -> None:
    chat = await world.chat()
    assert change_setting(TTL, "10m") == 0
    job, agent = await world.ready(chat)
    assert job.data["activity_seconds"] == 200
    first = chat.now["stops_at"]
    assert first is not None

    await agent.publish_event("agent_activity")  # it gains less than a tenth
    kept = await world.service.rpc("keep", chat_id=chat.id, seconds=1200)
    assert kept["stops_at"] > first
    shown = await chat.state("ready", stops_at=kept["stops_at"])
    assert shown["cause"]["type"] == "workspaced.keep_requested.v1"
    assert await world.service.rpc("keep", chat_id=chat.id, seconds=60) == kept
    assert (await chat.call(START))["no_build"] is True
    assert chat.now["stops_at"] == kept["stops_at"]
    await steps.given_finished_stop(world, chat)
    assert chat.now["stops_at"] is None
    assert await world.service.rpc("keep", chat_id=chat.id, seconds=60) == {"stops_at": None}
    for wrong in (0, -1):
        with pytest.raises(ServiceError, match="400"):
            await world.service.rpc("keep", chat_id=chat.id, seconds=wrong)


async def test_c7b_d1a_activity_and_calls_keep_a_workspace_running(
    world: World, change_setting: ChangeSetting
) -> None:
    chat, alone = await world.chat(), await world.chat()
    assert change_setting(TTL, "4s") == 0
    await world.ready(alone)
    job, agent = await world.ready(chat)
    assert job.data["activity_seconds"] == 1

    while True:  # until the other one's lifetime has ended
        try:
            async with asyncio.timeout(job.data["activity_seconds"]):
                await alone.state("stopping")
                break
        except TimeoutError:
            version = chat.now["version"]
            await agent.publish_event("agent_activity")
            await chat.state("ready", above=version)

    assert chat.now["state"] == "ready"
    assert chat.now["cause"]["type"] == "workspaced.agent_activity.v1"


async def test_n1_a_workspace_that_rests_is_deleted_and_a_changed_setting_holds_at_once(
    world: World, change_setting: ChangeSetting
) -> None:
    chat, failed = await world.chat(), await world.chat()
    await steps.given_finished_start(world, chat)
    await steps.given_finished_stop(world, chat)
    await steps.given_finished_start(world, failed, "failed")
    assert change_setting(RETENTION, "100d") == 0
    assert change_setting(RETENTION, "1ms") == 0

    for one, number in ((chat, 3), (failed, 2)):
        delete = await world.provisioner.job(one, "delete", number)
        assert one.now["cause"]["type"] == "workspaced.retention_passed.v1"
        await world.provisioner.succeed(delete)
        await one.state("none")


@pytest.fixture
async def bus_traffic(world: World) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Record every message on the bus from now on, with its subject."""
    heard: list[tuple[str, bytes]] = []

    async def hear(message: Msg) -> None:
        heard.append((message.subject, message.data + str(message.headers).encode()))

    subscription = await world.operator.client.subscribe("workspaced.>", cb=hear)
    await world.operator.flush()
    yield heard
    await subscription.unsubscribe()


async def test_a_sensitive_value_is_in_jobs_only(
    world: World, bus_traffic: list[tuple[str, bytes]]
) -> None:
    assert world.deployment.up is not None
    chat = await world.chat()
    nowhere = await chat.ask(START, {"parameters": {"secret": "swordfish-0"}})
    assert (await chat.answer(nowhere))["is_error"] is True
    values = {"word": "W", "secret": "swordfish-1", "Secret": "swordfish-misspelled"}
    wrong = await steps.request_create(world, chat, template_id=world.rich, parameters=values)
    validations = (await steps.successful_result(chat, wrong))["validations"]
    values = {"word": "w", "secret": "swordfish-2"}
    call = await steps.request_create(world, chat, template_id=world.rich, parameters=values)
    job = await world.provisioner.job(chat)
    during = await world.service.ask("get_chat", {"chat_id": chat.id})
    await world.provisioner.succeed(job)
    await steps.successful_result(chat, call)
    stop = await steps.given_finished_stop(world, chat)
    call = await chat.ask(START, {"parameters": {"secret": "swordfish-3"}})
    again = await world.provisioner.job(chat, "start", 3)
    await world.provisioner.succeed(again)
    await steps.successful_result(chat, call)
    await chat.ask(STOP, {"parameters": {"secret": "swordfish-4"}})
    last = await world.provisioner.job(chat, "stop", 4)
    await world.provisioner.fail(last, "no luck")
    await chat.state("failed")

    secrets = [j.parameters["secret"] for j in (job, stop, again, last)]
    assert secrets == ["swordfish-2", "swordfish-2", "swordfish-3", "swordfish-3"]
    assert {fault["field"] for fault in validations} == {"word", "Secret"}
    exported = world.deployment.up.run("events", chat.id)
    assert exported.returncode == 0, exported.stderr
    shown = [
        during,
        await world.service.ask("get_chat", {"chat_id": chat.id}),
        await world.service.ask("read_events", {"chat_id": chat.id}),
        await world.service.ask("list_chats", {"owner_id": chat.owner_id}),
        await world.service.ask("read_template", _read(world, chat)),
        json.dumps([*chat.states.all, *chat.results.all]).encode(),
        world.deployment.up.process.output().encode(),
        exported.stdout.encode(),
    ]
    for text in shown:
        assert b"swordfish" not in text
    assert b"***" in shown[2]
    assert '"secret": "***"' in exported.stdout
    leaks = {subject for subject, body in bus_traffic if b"swordfish" in body}
    assert leaks == {chat.subject, "workspaced.job.wire"}


def _read(world: World, chat: Chat) -> dict[str, object]:
    return {"chat_id": chat.id, **chat.identity, "args": {"template_id": world.rich}}
