"""Credentials of agents and frontends: their permissions and their expiry."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats.errors
import pytest

from tests.rigs.client import (
    Participant,
    ServiceError,
    connect,
    connected,
    connected_agent,
    credential_options,
)
from tests.rigs.messages import agent_entry, new_id
from tests.rigs.world import Deployment, World


async def assert_denied(party: Participant, word: str) -> None:
    """Wait until the server has denied this participant a subject that contains `word`."""
    found = await party.errors.first(lambda error: word.lower() in str(error).lower())
    assert "permissions violation" in str(found).lower()


async def assert_connection_refused(deployment: Deployment, **options: Any) -> None:
    """Check that NATS refuses a connection."""
    stranger = Participant()
    with pytest.raises(nats.errors.Error):
        await connect(stranger, deployment.nats, **options)
    await stranger.client.close()


async def test_an_agent_may_report_only_about_itself(world: World) -> None:
    chat, other = await world.chat(), await world.chat()
    job, its_agent = await world.ready(chat)

    for subject in (
        f"workspaced.in.agent.{chat.id}.{new_id()}",
        f"workspaced.in.agent.{other.id}.{its_agent.id}",
        chat.subject,
        f"workspaced.log.{chat.id}.{new_id()}",
        "workspaced.rpc.get_chat",
        f"workspaced.state.{chat.id}",
    ):
        await its_agent.client.publish(subject, b"{}")
        await assert_denied(its_agent, subject)
    for subject in ("workspaced.>", f"workspaced.ui.{chat.id}.>", "_INBOX.>"):
        await its_agent.client.subscribe(subject)
        await assert_denied(its_agent, f'"{subject}"')
    await its_agent.client.subscribe("workspaced.resend.agent")
    await its_agent.log(1, "still there\n")
    line = await chat.logs.first(lambda e: e["data"]["origin"] == "agent")

    assert line["data"]["build_id"] == job.build_id


async def test_a_credential_is_issued_before_the_build_has_succeeded(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    listed = agent_entry()

    async with connected_agent(
        world.deployment.nats, world.provisioner, job.data, listed["id"]
    ) as early:
        await early.report_connected()
        await world.provisioner.succeed(job, listed)
        await chat.state("scripts_running")


@pytest.mark.parametrize("wrong", ["build_id", "workspace_id", "chat_id"])
async def test_only_the_newest_build_of_a_chat_gets_a_credential(world: World, wrong: str) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    await world.provisioner.fail(job)
    keys = ("chat_id", "workspace_id", "build_id")
    asked = {key: job.data[key] for key in keys} | {wrong: new_id(), "agent_id": new_id()}

    with pytest.raises(ServiceError) as fault:
        await world.provisioner.rpc("agent_credential", **asked)

    assert fault.value.code == 403


async def test_an_older_build_gets_no_credential_and_its_agents_are_refused(world: World) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)
    keys = ("chat_id", "workspace_id", "build_id")
    asked = {key: job.data[key] for key in keys} | {"agent_id": new_id()}
    credential = await world.provisioner.rpc("agent_credential", **asked)

    call = await chat.ask("stop_workspace")
    stop = await world.provisioner.job(chat, "stop")
    with pytest.raises(ServiceError) as fault:
        await world.provisioner.rpc("agent_credential", **asked)
    await assert_connection_refused(world.deployment, **credential_options(credential))
    await world.provisioner.succeed(stop)
    await chat.answer(call)

    assert fault.value.code == 403


async def test_a_frontend_reads_its_own_chats_only(world: World) -> None:
    mine, other = await world.chat(), await world.chat()
    _, job = await world.building(mine)
    credential = await world.service.rpc("frontend_credential", chat_ids=[mine.id], ttl_seconds=60)
    seen: asyncio.Queue[dict] = asyncio.Queue()

    async def show(message: object) -> None:
        await seen.put(json.loads(message.data))  # type: ignore[attr-defined]

    async with connected(
        Participant(), world.deployment.nats, **credential_options(credential)
    ) as frontend:
        await frontend.client.subscribe(f"workspaced.ui.{mine.id}.>", cb=show)
        await frontend.flush()
        snapshot = await frontend.last_state(mine.id)
        await world.provisioner.succeed(job)
        shown = await asyncio.wait_for(seen.get(), 5)
        for subject in (f"workspaced.ui.{other.id}.>", "workspaced.ui.>", "workspaced.result.>"):
            await frontend.client.subscribe(subject)
            await assert_denied(frontend, f'"{subject}"')
        for subject in (
            f"$JS.API.DIRECT.GET.WORKSPACED_STATE.workspaced.state.{other.id}",
            "$JS.API.DIRECT.GET.WORKSPACED_STATE",
            "$JS.API.CONSUMER.CREATE.WORKSPACED_STATE",
            f"workspaced.in.tool.{mine.id}.chatd",
            "workspaced.rpc.get_chat",
        ):
            await frontend.client.publish(subject, b"{}")
            await assert_denied(frontend, f'"{subject}"')

    assert snapshot is not None
    assert snapshot["state"] == "building"
    assert shown == mine.states.all[-1]
    assert shown["data"]["state"] == "ready"


@pytest.mark.parametrize("more", [{}, {"exec": True}])
async def test_a_frontend_reads_the_logs_of_its_own_chats_only(
    more: dict[str, bool], world: World
) -> None:
    mine, second, other = await world.chat(), await world.chat(), await world.chat()
    jobs = {}
    for chat in (mine, second, other):
        _, job = await world.building(chat)
        await world.provisioner.log(job.data, 1, f"of {chat.id}\n")
        jobs[chat.id] = job
    credential = await world.service.rpc(
        "frontend_credential", chat_ids=[mine.id, second.id], ttl_seconds=60, **more
    )

    async with connected(
        Participant(), world.deployment.nats, **credential_options(credential)
    ) as frontend:
        for chat in (mine, second):
            asked = {"chat_id": chat.id, "build_id": jobs[chat.id].build_id}
            page = await frontend.rpc("read_log", **asked)
            nothing = await frontend.rpc("read_log", **asked, after=2**62)

            assert [line["output"] for line in page["lines"]] == [f"of {chat.id}\n"]
            assert nothing == {"lines": []}
        for body, code in (
            ({"chat_id": other.id, "build_id": jobs[other.id].build_id}, 403),
            ({"chat_id": other.id, "build_id": jobs[mine.id].build_id}, 403),
            ({"chat_id": mine.id}, 400),
        ):
            with pytest.raises(ServiceError) as fault:
                await frontend.rpc("read_log", **body)

            assert fault.value.code == code
        forged = {"Nats-Request-Info": json.dumps({"acc": "CHATS", "user": "U"})}
        body = json.dumps({"chat_id": other.id, "build_id": jobs[other.id].build_id}).encode()
        answer = await frontend.client.request("workspaced.rpc.read_log", body, headers=forged)

    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "403"


async def test_a_frontends_credential_expires(world: World) -> None:
    chat = await world.chat()
    credential = await world.service.rpc("frontend_credential", chat_ids=[chat.id], ttl_seconds=3)
    closed = asyncio.Event()

    async def over() -> None:
        closed.set()

    options = {"closed_cb": over, **credential_options(credential)}
    async with connected(Participant(), world.deployment.nats, **options):
        await asyncio.wait_for(closed.wait(), 10)


async def test_a_client_without_a_credential_is_refused(world: World) -> None:
    await assert_connection_refused(world.deployment)
