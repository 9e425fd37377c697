"""A workspace from the call to the answer, as subscribers of the bus see it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from tests.rigs.messages import agent_entry, new_id, new_trace
from tests.rigs.world import ORGANIZATION, World


async def test_a_create_causes_a_job_states_and_one_answer(world: World) -> None:
    chat = await world.chat()
    trace_id, traceparent = new_trace()

    call = await chat.ask(
        "create_workspace", {"template_id": world.rich, "parameters": {"word": "hello"}},
        traceparent=traceparent,
    )  # fmt: skip
    job = await world.provisioner.job(chat)
    building = await chat.state("building")

    assert job.envelope["traceparent"].split("-")[1] == trace_id
    assert job.message.subject == "workspaced.job.wire"
    assert (job.build_number, job.transition) == (1, "start")
    assert (job.organization_id, job.owner_id) == (ORGANIZATION, chat.owner_id)
    assert job.owner_name == "ann"
    assert job.template["name"] == "rich"
    assert job.template["id"] == world.rich
    assert job.template["version_id"] == world.deployment.templates["rich"]["version_id"]
    assert job.template["spec"] == {
        "build": {"start": "./build.sh"},
        "agent": [{"name": "main"}],
    }
    assert job.parameters == {"branch": "main", "size": "3", "word": "hello", "secret": "hush"}
    assert building["workspace"] == {
        "id": job.workspace_id,
        "name": job.workspace_name,
        "owner_name": "ann",
        "template_id": world.rich,
    }
    assert building["build"]["id"] == job.build_id
    assert building["agent"] is None
    assert building["version"] == 1
    ten_minutes = datetime.fromisoformat(building["build"]["started_at"]) + timedelta(minutes=10)
    assert datetime.fromisoformat(building["deadline"]) == ten_minutes
    assert datetime.fromisoformat(job.not_after) == ten_minutes

    listed = agent_entry("main", parent_id=None, display_order=0)
    built = await world.provisioner.succeed(job, listed)
    connecting = await chat.state("agent_connecting")
    agent = await world.agent(job, listed["id"])
    connected = await agent.report_connected()
    running = await chat.state("scripts_running")
    started = await agent.report_lifecycle("starting")
    await agent.report_lifecycle("ready")
    resolved = await chat.answer(call)

    assert connecting["agent"] == {
        "id": listed["id"],
        "name": "main",
        "status": "connecting",
        "lifecycle": None,
        "reason": None,
    }
    assert connecting["cause"] == {key: built[key] for key in ("source", "id", "type")}
    assert running["agent"]["status"] == "connected"
    assert running["cause"] == {key: connected[key] for key in ("source", "id", "type")}
    assert [e["data"]["agent"] and e["data"]["agent"]["lifecycle"] for e in chat.states.all] == [
        None,
        None,
        None,
        "starting",
        "ready",
    ]
    assert chat.states.all[3]["data"]["cause"]["id"] == started["id"]
    await chat.entered("building", "agent_connecting", "scripts_running", "ready")
    assert [e["data"]["version"] for e in chat.states.all] == [1, 2, 3, 4, 5]
    assert chat.states.all[0]["data"]["previous_state"] == "none"
    assert len({e["id"] for e in chat.states.all}) == 5
    assert resolved == {
        "call_id": call,
        "tool": "create_workspace",
        "is_error": False,
        "result": {
            "created": True,
            "workspace_name": f"ann/{job.workspace_name}",
            "build_id": job.build_id,
        },
    }


async def test_messages_caused_by_an_event_carry_its_trace(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    trace_id, traceparent = new_trace()

    await world.provisioner.publish_event(
        "build_failed", job, error="gone", traceparent=traceparent
    )
    await job.ack()
    await chat.state("failed:build_failed")
    await chat.results.count(1)

    for caused in (chat.states.all[-1], chat.results.all[-1]):
        assert caused["traceparent"].split("-")[1] == trace_id
    assert "traceparent" not in chat.states.all[0]


async def test_the_last_state_and_the_answer_can_be_read_again(
    world: World,
) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    await world.provisioner.succeed(job)
    await chat.results.count(1)

    snapshot = await world.service.last("WORKSPACED_STATE", f"workspaced.state.{chat.id}")
    call = chat.results.all[0]["data"]["call_id"]
    stored = await world.service.last("WORKSPACED_RESULT", f"workspaced.result.{chat.id}.{call}")

    assert snapshot is not None
    assert snapshot[0] == chat.states.all[-1]
    assert stored is not None
    assert stored[0] == chat.results.all[0]
    assert await world.service.last_state(new_id()) is None


async def test_a_late_frontend_misses_no_state_and_sees_none_twice(
    world: World,
) -> None:
    chat = await world.chat()
    _, _, agent = await world.connecting(chat)

    late = await world.service.chat(chat.id)
    await agent.report_connected()
    await chat.state("scripts_running")
    snapshot = await world.service.last_state(chat.id)
    assert snapshot is not None
    await agent.report_lifecycle("ready")
    await late.state("ready")
    held, kept = snapshot["version"], [snapshot["state"]]
    for data in (envelope["data"] for envelope in late.states.all):
        if data["version"] > held:
            held = data["version"]
            kept.append(data["state"])

    assert kept == ["scripts_running", "ready"]
    assert held == chat.now["version"]


async def test_a_build_without_agents_is_ready_at_once(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await world.provisioner.succeed(job)
    result = (await chat.answer(call))["result"]

    await chat.entered("building", "ready")
    assert chat.now["agent"] is None
    assert result["created"] is True
    assert result["agent_status"] == "no_agent"


async def test_early_facts_take_effect_later(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    listed = agent_entry()
    agent = await world.agent(job, listed["id"])

    await agent.report_connected()
    await agent.report_lifecycle("ready")
    await world.provisioner.succeed(job, listed)
    await chat.answer(call)

    await chat.entered("building", "agent_connecting", "scripts_running", "ready")
    assert [e["data"]["version"] for e in chat.states.all] == [1, 2, 3, 4]


async def test_log_lines_reach_frontends_and_are_stored(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    agent = await world.agent(job, new_id())

    await world.provisioner.log(job.data, 1, "making\nit\n")
    await agent.log(1, "running it\n")
    shown = await chat.logs.count(2)
    page = await world.service.rpc("read_log", chat_id=chat.id, build_id=job.build_id)

    assert [line["data"]["output"] for line in shown] == ["making\nit\n", "running it\n"]
    assert [line["data"]["origin"] for line in shown] == ["provisioner", "agent"]
    assert page == {"lines": [line["data"] for line in shown]}


async def test_two_concurrent_creates_make_one_workspace(world: World) -> None:
    chat = await world.chat()
    args = {"template_id": world.plain}

    calls = await asyncio.gather(*(chat.ask("create_workspace", args) for _ in range(5)))
    job = await world.provisioner.job(chat)
    await world.provisioner.succeed(job)
    results = [(await chat.answer(call))["result"] for call in calls]

    assert [job.chat_id for job in world.provisioner.jobs.all].count(chat.id) == 1
    made = [result for result in results if result["created"]]
    joined = [result for result in results if not result["created"]]
    assert (len(made), len(joined)) == (1, 4)
    for result in joined:
        assert result["status"] == "already_exists"
        assert result["build_id"] == job.build_id
        assert result["workspace_name"] == job.workspace_name
        assert result["message"]
