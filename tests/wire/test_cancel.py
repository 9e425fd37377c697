"""Canceling a call ends the wait of that call only."""

from __future__ import annotations

from tests.rigs.client import Chat
from tests.rigs.world import World


async def cancel_call(world: World, chat: Chat, call: str, *, by_rpc: bool) -> None:
    if by_rpc:
        answer = await world.service.rpc("cancel", chat_id=chat.id, call_id=call)
        assert answer == {"canceled": True}
    else:
        await chat.cancel(call)


async def test_a_cancel_during_the_build_answers_the_call(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await cancel_call(world, chat, call, by_rpc=False)
    resolved = await chat.answer(call)
    await world.provisioner.succeed(job)
    await chat.state("ready")

    assert resolved["is_error"] is False
    assert resolved["result"].keys() == {"error", "build_id"}
    assert resolved["result"]["build_id"] == job.build_id
    await chat.entered("building", "ready")


async def test_a_cancel_while_the_agent_connects_answers_the_call(world: World) -> None:
    chat = await world.chat()
    call, job, _ = await world.connecting(chat)

    await cancel_call(world, chat, call, by_rpc=True)

    assert (await chat.answer(call))["result"] == {
        "created": True,
        "workspace_name": f"ann/{job.workspace_name}",
        "build_id": job.build_id,
        "agent_status": "not_ready",
    }


async def test_a_cancel_while_scripts_run_answers_the_call(world: World) -> None:
    chat = await world.chat()
    call, _, agent = await world.connecting(chat)
    await agent.report_connected()
    await chat.state("scripts_running")

    await cancel_call(world, chat, call, by_rpc=True)
    result = (await chat.answer(call))["result"]

    assert result["created"] is True
    assert result["startup_scripts"] == "startup_scripts_unknown"


async def test_a_cancel_during_a_stop_answers_the_call(world: World) -> None:
    chat = await world.chat()
    await world.ready(chat)
    call = await chat.ask("stop_workspace")
    job = await world.provisioner.job(chat, "stop")

    await cancel_call(world, chat, call, by_rpc=False)
    result = (await chat.answer(call))["result"]
    await world.provisioner.succeed(job)
    await chat.state("stopped")

    assert result.keys() == {"error", "build_id"}
    assert result["build_id"] == job.build_id


async def test_a_cancel_ends_only_its_own_call(world: World) -> None:
    chat = await world.chat()
    first, job = await world.building(chat)
    second = await chat.ask("create_workspace", {"template_id": world.plain})

    await cancel_call(world, chat, first, by_rpc=False)
    await chat.answer(first)
    await world.provisioner.succeed(job)

    assert (await chat.answer(second))["result"]["build_id"] == job.build_id


async def test_a_cancel_does_not_change_an_answered_call(world: World) -> None:
    chat = await world.chat()
    call = await chat.ask("list_templates")
    answer = await chat.answer(call)

    assert await world.service.rpc("cancel", chat_id=chat.id, call_id=call) == {"canceled": False}
    await chat.cancel(call)
    await chat.ask("list_templates", call_id=call)

    assert [e["data"] for e in await chat.results.count(2)] == [answer, answer]


async def test_a_cancel_may_arrive_before_its_request(world: World) -> None:
    chat = await world.chat()

    await chat.cancel("early-bird")
    text = await chat.call_error(
        "create_workspace", {"template_id": world.plain}, call_id="early-bird"
    )

    assert text
    assert chat.states.all == []
    assert not [job for job in world.provisioner.jobs.all if job.chat_id == chat.id]
