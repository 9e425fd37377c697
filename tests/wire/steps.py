"""Steps of the tests in tests/wire: `given_…` brings a chat into a state, `request_…` and `report_…` act."""

from __future__ import annotations

from tests.rigs.client import Agent, Chat, Job
from tests.rigs.messages import Event, agent_entry, new_id
from tests.rigs.world import World

CREATE, START, STOP = "create_workspace", "start_workspace", "stop_workspace"
FAILURE = {"error", "build_id"}
EXISTS = {"created", "workspace_name", "status", "message"}


async def request_create(world: World, chat: Chat, **args: object) -> str:
    """Request a workspace; return the call."""
    return await chat.ask(CREATE, {"template_id": world.plain, **args})


async def successful_result(chat: Chat, call: str) -> Event:
    """Wait for the answer to a call and return its result. Fails if the answer is an error."""
    resolved = await chat.answer(call)
    assert not resolved["is_error"], resolved
    return dict(resolved["result"])


async def all_jobs(world: World, chat: Chat) -> list[Job]:
    """Return all jobs that the chat has caused: waits for a later job of another chat, as jobs arrive in order."""
    _, last = await world.building(await world.chat())
    await world.provisioner.fail(last)
    return [job for job in world.provisioner.jobs.all if job.chat_id == chat.id]


async def job_of_new_workspace(world: World, chat: Chat, old: Job | Event) -> Job:
    """Wait for the first job for another workspace of the chat than that of `old`."""
    workspace_id = old.data["workspace_id"] if isinstance(old, Job) else old["workspace_id"]
    return await world.provisioner.jobs.first(
        lambda job: job.chat_id == chat.id and job.workspace_id != workspace_id
    )


async def assert_calls_wait(world: World, chat: Chat, *calls: str) -> None:
    """Check that the workers have received the calls and have not answered them."""
    await chat.call("list_templates", {"query": "none is called this"})
    found = await world.service.rpc("get_chat", chat_id=chat.id)
    assert set(calls) <= {call["call_id"] for call in found["open_calls"]}


async def finish_build(world: World, job: Job, how: str) -> None:
    """Report the end of a build: `succeeded` (without agents), `failed` or `canceled`."""
    if how == "canceled":
        await world.provisioner.publish_event("build_canceled", job)
        await job.ack()
    elif how == "failed":
        await world.provisioner.fail(job)
    else:
        await world.provisioner.succeed(job)


async def given_finished_start(world: World, chat: Chat, how: str = "succeeded") -> Job:
    """Create a workspace whose start build ended as `how`; return its job."""
    call, job = await world.building(chat)
    await finish_build(world, job, how)
    await chat.answer(call)
    return job


async def request_stop(world: World, chat: Chat) -> tuple[str, Job]:
    """Request a stop; return the call and the job."""
    number = chat.now["build"]["number"] + 1
    call = await chat.ask(STOP)
    return call, await world.provisioner.job(chat, "stop", number)


async def given_finished_stop(world: World, chat: Chat, how: str = "succeeded") -> Job:
    """Request a stop whose build ends as `how`; return its job."""
    call, job = await request_stop(world, chat)
    await finish_build(world, job, how)
    await chat.answer(call)
    return job


async def given_stopped_workspace(world: World, chat: Chat) -> Job:
    """Create and stop a workspace without agents; return its start job."""
    job = await given_finished_start(world, chat)
    await given_finished_stop(world, chat)
    return job


async def request_delete(world: World, chat: Chat) -> Job:
    """Request the deletion of the chat's workspace; return the job."""
    await chat.publish_event("delete_requested", {"reason": "no longer needed"})
    return await world.provisioner.job(chat, "delete")


async def given_deleted_workspace(world: World, chat: Chat) -> Job:
    """Create a workspace that is then deleted outside workspaced; return its start job."""
    job = await given_finished_start(world, chat)
    await world.provisioner.publish_event(
        "workspace_deleted", job, build_id=None, build_number=None
    )
    await chat.state("none")
    return job


async def given_running_workspace(world: World, chat: Chat, state: str) -> tuple[Job, Agent | None]:
    """Create a running workspace in `state`; `lost`: its agent disconnected; `bare`: it has no agents."""
    if state == "bare":
        return await given_finished_start(world, chat), None
    if state == "selection_error":
        call, job = await world.building(chat)
        await world.provisioner.succeed(job, *ambiguous_agents())
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


def ambiguous_agents() -> tuple[Event, Event]:
    """Return agents of which workspaced can choose none."""
    return agent_entry("one-coderd-chat"), agent_entry("two-CODERD-chat")


def external_build(of: Job | Chat, number: int = 1, transition: str = "start") -> Event:
    """Return a build made outside workspaced, of a job's workspace or of an unknown one."""
    job = of if isinstance(of, Job) else None
    return {
        "chat_id": job.chat_id if job else of.id,
        "workspace_id": job.workspace_id if job else new_id(),
        "build_id": new_id(),
        "build_number": number,
        "transition": transition,
    }


async def report_external_build(world: World, build: Event, type_name: str, *agents: Event) -> None:
    """Report the start or the end of an external build."""
    more: Event = {}
    if type_name == "build_succeeded":
        more = {"template_version_id": new_id(), "agents": list(agents)}
    elif type_name == "build_failed":
        more = {"error": "no disk left"}
    await world.provisioner.publish_event(type_name, build, **more)


def is_build_failure(answer: Event, build_id: str) -> bool:
    """Return whether `answer` is a build failure object of that build."""
    return answer.keys() == FAILURE and answer["build_id"] == build_id
