"""The situations of docs/internals/tool-rules.md, brought about over real servers."""

from __future__ import annotations

from tests.rigs.client import Agent, Chat, Event, Job, agent_entry, new_id
from tests.rigs.world import World

CREATE, START, STOP = "create_workspace", "start_workspace", "stop_workspace"
FAILURE = {"error", "build_id"}
EXISTS = {"created", "workspace_name", "status", "message"}


async def create(world: World, chat: Chat, **args: object) -> str:
    """Ask for a workspace; return the call."""
    return await chat.ask(CREATE, {"template_id": world.plain, **args})


async def result(chat: Chat, call: str) -> Event:
    """Wait for a call's result, which must be no error of the call."""
    resolved = await chat.answer(call)
    assert not resolved["is_error"], resolved
    return dict(resolved["result"])


async def jobs(world: World, chat: Chat) -> list[Job]:
    """All jobs that the chat has caused; what comes in order behind them has come."""
    _, last = await world.building(await world.chat())
    await world.provisioner.fail(last)
    return [job for job in world.provisioner.jobs.all if job.chat_id == chat.id]


async def new_job(world: World, chat: Chat, old: Job | Event) -> Job:
    """Wait for the first job of another workspace of the chat."""
    workspace_id = old.data["workspace_id"] if isinstance(old, Job) else old["workspace_id"]
    return await world.provisioner.jobs.first(
        lambda job: job.chat_id == chat.id and job.workspace_id != workspace_id
    )


async def waits(world: World, chat: Chat, *calls: str) -> None:
    """See that the calls came, and wait."""
    await chat.call("list_templates", {"query": "none is called this"})
    found = await world.service.rpc("get_chat", chat_id=chat.id)
    assert set(calls) <= {call["call_id"] for call in found["open_calls"]}


async def end(world: World, job: Job, how: str) -> None:
    """End a build: `succeeded` (without agents), `failed` or `canceled`."""
    if how == "canceled":
        await world.provisioner.publish_event("build_canceled", job)
        await job.ack()
    elif how == "failed":
        await world.provisioner.fail(job)
    else:
        await world.provisioner.succeed(job)


async def ended(world: World, chat: Chat, how: str = "succeeded") -> Job:
    """Have a workspace whose start build ended like that."""
    call, job = await world.building(chat)
    await end(world, job, how)
    await chat.answer(call)
    return job


async def stopping(world: World, chat: Chat) -> tuple[str, Job]:
    """Ask to stop what runs; return the call and its job."""
    number = chat.now["build"]["number"] + 1
    call = await chat.ask(STOP)
    return call, await world.provisioner.job(chat, "stop", number)


async def stop_ended(world: World, chat: Chat, how: str = "succeeded") -> Job:
    """Have what runs stopped, or not, as it ends."""
    call, job = await stopping(world, chat)
    await end(world, job, how)
    await chat.answer(call)
    return job


async def stopped(world: World, chat: Chat) -> Job:
    """Have a workspace without agents that is stopped; return its start."""
    job = await ended(world, chat)
    await stop_ended(world, chat)
    return job


async def deleting(world: World, chat: Chat) -> Job:
    """Have the chat's workspace deleted; return the job."""
    await chat.publish_event("delete_requested", {"reason": "no longer needed"})
    return await world.provisioner.job(chat, "delete")


async def gone(world: World, chat: Chat) -> Job:
    """Have had a workspace that somebody deleted; return its start."""
    job = await ended(world, chat)
    await world.provisioner.publish_event(
        "workspace_deleted", job, build_id=None, build_number=None
    )
    await chat.state("none")
    return job


async def running(world: World, chat: Chat, state: str) -> tuple[Job, Agent | None]:
    """Have a workspace that runs, and is in `state`: also `lost`, or `bare` without agents."""
    if state == "bare":
        return await ended(world, chat), None
    if state == "selection_error":
        call, job = await world.building(chat)
        await world.provisioner.succeed(job, *unchoosable())
        await chat.answer(call)
        return job, None
    call, job, agent = await world.connecting(chat)
    if state == "agent_connecting":
        return job, agent
    await agent.report_connected()
    await chat.state("scripts_running")
    if state == "scripts_running":
        return job, agent
    await agent.report_lifecycle("start_error" if state == "scripts_failed" else "ready")
    await chat.answer(call)
    if state == "lost":
        await agent.report_disconnected()
        await chat.states.first(
            lambda e: (e["data"]["agent"] or {}).get("status") == "disconnected"
        )
    return job, agent


def unchoosable() -> tuple[Event, Event]:
    """Agents of which none can be chosen."""
    return agent_entry("one-coderd-chat"), agent_entry("two-CODERD-chat")


def elsewhere(of: Job | Chat, number: int = 1, transition: str = "start") -> Event:
    """A build that somebody made outside: of a job's workspace, or of one that nobody knows."""
    job = of if isinstance(of, Job) else None
    return {
        "chat_id": job.chat_id if job else of.id,
        "workspace_id": job.workspace_id if job else new_id(),
        "build_id": new_id(),
        "build_number": number,
        "transition": transition,
    }


async def told(world: World, build: Event, type_name: str, *agents: Event) -> None:
    """Tell the start or the end of a build made elsewhere."""
    more: Event = {}
    if type_name == "build_succeeded":
        more = {"template_version_id": new_id(), "agents": list(agents)}
    elif type_name == "build_failed":
        more = {"error": "no disk left"}
    await world.provisioner.publish_event(type_name, build, **more)


def is_failure(answer: Event, build_id: str) -> bool:
    """Whether it is a build failure object of the build."""
    return answer.keys() == FAILURE and answer["build_id"] == build_id
