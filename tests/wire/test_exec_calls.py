"""Commands and files by rpc, with a stand-in agent: it answers requests on the bus as an agent of another make would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from nats.aio.msg import Msg

from tests.rigs.client import (
    Agent,
    Participant,
    Received,
    ServiceError,
    connected,
    credential_options,
)
from tests.rigs.messages import Event, agent_entry, new_id
from tests.rigs.world import World

PROCESS = {"exec_id": new_id(), "status": "exited", "exit_code": 0}
DONE = {**PROCESS, "output": "hi\n", "offset": 0, "next": 3}


class StandIn:
    """Answers the requests of a connected agent in its place, and keeps them."""

    def __init__(self, agent: Agent, answer: Callable[[Event], Event | bytes]) -> None:
        self.agent, self.answer = agent, answer
        self.requests: list[Event] = []
        self.time = "2126-01-01T00:00:00Z"

    @classmethod
    async def of(cls, agent: Agent, answer: Callable[[Event], Event | bytes]) -> StandIn:
        stand_in = cls(agent, answer)
        subject = f"workspaced.agent.{agent.build['chat_id']}.{agent.id}.*"
        await agent.client.subscribe(subject, cb=stand_in._respond)
        await agent.flush()
        return stand_in

    async def _respond(self, message: Msg) -> None:
        request = json.loads(message.data)
        assert (request["chat_id"], request["agent_id"]) == (
            self.agent.build["chat_id"],
            self.agent.id,
        )
        self.requests.append(request)
        answer = self.answer(request)
        await message.respond(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    async def publish(self, exec_id: str, type_name: str, **data: Any) -> None:
        """Publish what a process does."""
        agent = self.agent
        chat = agent.build["chat_id"]
        event = {
            "specversion": "1.0",
            "id": new_id(),
            "source": f"/agent/{agent.id}",
            "type": f"workspaced.{type_name}.v1",
            "subject": chat,
            "time": self.time,
            "data": {"exec_id": exec_id, **data},
        }
        await agent.publish(f"workspaced.exec.{chat}.{agent.id}.{exec_id}", event)


def done(_request: Event) -> Event:
    return {"is_error": False, "result": DONE}


async def refused(world: World, code: int, tool: str, **body: Any) -> str:
    """Call a tool and return the text of the service error."""
    with pytest.raises(ServiceError) as error:
        await world.service.rpc(tool, **body)
    assert error.value.code == code, error.value
    return error.value.text


async def test_the_agent_gets_the_arguments_that_are_set_and_its_answer_is_returned(
    world: World,
) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    stand_in = await StandIn.of(agent, done)

    answer = await world.service.rpc(
        "execute",
        chat_id=chat.id,
        call_id="c1",
        surplus=1,
        args={"command": "echo hi\0", "cwd": "", "env": None, "wait_seconds": 900.0, "bogus": 2},
    )

    assert answer == {
        "call_id": "c1",
        "tool": "execute",
        "is_error": False,
        "result": DONE,
        "ignored": ["bogus", "surplus"],
    }
    (request,) = stand_in.requests
    assert request == {
        "chat_id": chat.id,
        "agent_id": agent.id,
        "call_id": "c1",
        "args": {"command": "echo hi\0", "wait_seconds": 60},
    }


async def test_wrong_arguments_and_another_owner_are_errors_that_no_agent_gets(
    world: World,
) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    stand_in = await StandIn.of(agent, done)

    wrong = await world.service.rpc("execute", chat_id=chat.id, args={"command": 3})
    foreign = await world.service.rpc(
        "execute", chat_id=chat.id, owner_id=new_id(), args={"command": "id"}
    )

    assert wrong["is_error"] is True
    assert wrong["result"] == {"error": "args.command is not a text"}
    assert foreign["is_error"] is True
    assert foreign["result"].keys() == {"error"}
    assert stand_in.requests == []


async def test_service_errors_of_the_agent_are_passed_on_or_become_502(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    command = {"chat_id": chat.id, "args": {"command": "id"}}

    assert "not connected" in await refused(world, 504, "execute", **command)
    codes = {409: 409, 413: 413, 429: 429, 400: 502, 500: 502}
    pending = list(codes)

    async def fail(message: Msg) -> None:
        headers = {"Nats-Service-Error": "no", "Nats-Service-Error-Code": str(pending[0])}
        await agent.client.publish(message.reply, b"", headers=headers)

    listening = await agent.client.subscribe(f"workspaced.agent.{chat.id}.{agent.id}.*", cb=fail)
    await agent.flush()
    for code in codes.values():
        await refused(world, code, "execute", **command)
        pending.pop(0)
    await listening.unsubscribe()
    stand_in = await StandIn.of(agent, lambda _: b"nothing")
    for unreadable in (b"nothing", b"[]", b'{"is_error": 1, "result": {}}', b'{"is_error": true}'):
        stand_in.answer = lambda _, data=unreadable: data  # type: ignore[misc]
        assert "can't be read" in await refused(world, 502, "execute", **command)


async def test_an_agent_that_does_not_answer_is_504_after_ten_seconds(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    asked = Received[Msg]()
    await agent.client.subscribe(f"workspaced.agent.{chat.id}.{agent.id}.*", cb=asked.add)
    await agent.flush()
    loop = asyncio.get_running_loop()
    since = loop.time()

    text = await refused(world, 504, "read_file", chat_id=chat.id, call_id="c", args={"path": "a"})

    assert loop.time() - since > 9.9
    assert "ask again with call_id c" in text
    assert len(asked.all) == 1


async def test_a_body_over_512_kib_is_refused(world: World) -> None:
    text = await refused(
        world, 413, "write_file", chat_id=new_id(), args={"path": "a", "content": "x" * 524_288}
    )

    assert "524288" in text


async def test_a_workspace_that_takes_no_commands_names_the_next_step(world: World) -> None:
    async def step(chat_id: str) -> tuple[str, str | None]:
        answer = await world.service.rpc("list_files", chat_id=chat_id)
        assert answer["is_error"] is True
        assert answer["result"].keys() == {"error", "state", "next_step"}
        return answer["result"]["state"], answer["result"]["next_step"]

    chat = await world.chat()
    assert await step(chat.id) == ("none", "create_workspace")
    _, job, agent = await world.connecting(chat)
    assert await step(chat.id) == ("agent_connecting", "start_workspace")
    stand_in = await StandIn.of(agent, done)
    await agent.report_connected()
    await chat.state("scripts_running")
    await world.service.rpc("list_files", chat_id=chat.id)
    assert len(stand_in.requests) == 1
    await agent.report_lifecycle("ready")
    await chat.state("ready")
    before = (await chat.state("ready"))["version"]
    await agent.report_disconnected()
    await chat.state("ready", above=before)
    assert await step(chat.id) == ("ready", "stop_workspace")
    call = await chat.ask("stop_workspace")
    stop = await world.provisioner.job(chat, "stop")
    assert await step(chat.id) == ("stopping", "start_workspace")
    await world.provisioner.succeed(stop)
    await chat.answer(call)
    assert await step(chat.id) == ("stopped", "start_workspace")
    assert job.data["chat_id"] == chat.id


async def test_output_of_a_stopped_workspace_is_what_was_published(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    stand_in = await StandIn.of(agent, done)
    ended, cut = new_id(), new_id()
    for exec_id in (ended, cut):
        await stand_in.publish(exec_id, "exec_started", call_id="c", command="x", cwd="/")
        await stand_in.publish(exec_id, "exec_output", offset=0, next=5, output="ab€")
        await stand_in.publish(exec_id, "exec_output", offset=0, next=5, output="ab€")
        await stand_in.publish(exec_id, "exec_output", offset=5, next=7, output="cd")
        await stand_in.publish(exec_id, "exec_output", offset=9, next=10, output="z")
    await stand_in.publish(ended, "exec_exited", exit_code=3, size=10)
    await stand_in.publish(ended, "exec_output", offset=10, next=11, output="!")
    call = await chat.ask("stop_workspace")
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await chat.answer(call)

    async def page(exec_id: str, **args: Any) -> Event:
        answer = await world.service.rpc(
            "process_output", chat_id=chat.id, args={"exec_id": exec_id, **args}
        )
        return dict(answer["result"])

    whole = {"exec_id": ended, "status": "exited", "exit_code": 3, "dropped": 2}
    assert await page(ended) == {**whole, "output": "ab€cd", "offset": 0, "next": 7}
    assert await page(ended, after=3, limit=1) == {**whole, "output": "c", "offset": 5, "next": 6}
    assert await page(ended, after=2, limit=1) == {**whole, "output": "€", "offset": 2, "next": 5}
    assert await page(ended, after=7) == {**whole, "output": "z!", "offset": 9, "next": 11}
    assert await page(ended, after=99) == {**whole, "output": "", "offset": 11, "next": 11}
    killed = await page(cut, after=10)
    assert (killed["status"], killed["reason"], killed["dropped"]) == ("exited", "stopped", 2)
    unknown = await page(new_id())
    assert (unknown["state"], unknown["next_step"]) == ("stopped", "start_workspace")


async def test_a_process_runs_only_in_the_build_of_its_agent_whatever_that_ones_clock_says(
    world: World,
) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    stand_in, exec_id = await StandIn.of(agent, done), new_id()
    stand_in.time = "1999-01-01T00:00:00Z"
    await stand_in.publish(exec_id, "exec_started", call_id="c", command="x", cwd="/")

    async def page() -> Event:
        answer = await world.service.rpc(
            "process_output", chat_id=chat.id, args={"exec_id": exec_id}
        )
        return dict(answer["result"])

    before = (await chat.state("ready"))["version"]
    await agent.report_disconnected()
    await chat.state("ready", above=before)
    assert (await page())["status"] == "running"
    call = await chat.ask("stop_workspace")
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await chat.answer(call)
    await chat.ask("start_workspace")
    await world.provisioner.succeed(
        await world.provisioner.job(chat, "start", number=3), agent_entry()
    )
    await chat.state("agent_connecting")
    exec_id = new_id()
    stand_in.time = "2126-01-01T00:00:00Z"
    await stand_in.publish(exec_id, "exec_started", call_id="c", command="x", cwd="/")
    shown = await page()
    assert (shown["status"], shown["reason"]) == ("exited", "stopped")


async def test_no_agent_may_answer_or_publish_for_another(world: World) -> None:
    chat, other = await world.chat(), await world.chat()
    _, agent = await world.ready(chat)
    _, foreign = await world.ready(other)
    exec_id = new_id()

    await foreign.client.publish(f"workspaced.exec.{chat.id}.{agent.id}.{exec_id}", b"{}")
    await foreign.client.subscribe(f"workspaced.agent.{chat.id}.{agent.id}.*")
    await foreign.client.publish("_R_.x.y", b"{}")
    for subject in (f"workspaced.exec.{chat.id}", f"workspaced.agent.{chat.id}", "_r_.x.y"):
        denied = await foreign.errors.first(lambda e, s=subject: s in str(e).lower())  # type: ignore[misc]
        assert "permissions violation" in str(denied).lower()


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_frontend_sees_commands_only_if_its_key_was_issued_with_exec(
    allowed: bool, world: World
) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    stand_in = await StandIn.of(agent, done)
    options = {"exec": True} if allowed else {}
    key = await world.service.rpc("frontend_credential", chat_ids=[chat.id], **options)
    assert key["public_key"].startswith("U")
    async with connected(Participant(), world.deployment.nats, **credential_options(key)) as seeing:
        heard = await seeing.client.subscribe(f"workspaced.ui.{chat.id}.>")
        await seeing.flush()
        await stand_in.publish(new_id(), "exec_output", offset=0, next=1, output="x")
        await agent.log(1, "a line\n")
        seen = [(await heard.next_msg(5)).subject.split(".")[3] for _ in range(1 + allowed)]

    assert sorted(seen) == (["exec", "log"] if allowed else ["log"])


async def test_a_chat_service_without_exec_gets_403_and_may_do_all_the_rest(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    stand_in = await StandIn.of(agent, done)
    key = await world.operator.rpc("issue_credential", role="chat-service", exec=False)
    key.pop("role")
    async with connected(
        Participant(), world.deployment.nats, **credential_options(key)
    ) as service:
        heard = await service.client.subscribe(f"workspaced.ui.{chat.id}.>")
        with pytest.raises(ServiceError) as refusal:
            await service.rpc("execute", chat_id=chat.id, args={"command": "id"})
        assert refusal.value.code == 403
        assert (await service.rpc("get_chat", chat_id=chat.id))["state"] == "ready"
        assert (await service.last_state(chat.id) or {})["state"] == "ready"
        await stand_in.publish(new_id(), "exec_output", offset=0, next=1, output="x")
        await agent.log(1, "a line\n")
        assert ".log." in (await heard.next_msg(5)).subject
        revocations = await service.client.subscribe("workspaced.token.revoked")
        token = await service.rpc("issue_token", role="frontend", chat_ids=[chat.id])
        await service.rpc("revoke_token", id=token["id"])
        assert json.loads((await revocations.next_msg(5)).data) == {"id": token["id"]}
    assert stand_in.requests == []


async def test_a_chat_service_without_exec_can_grant_no_more_than_it_has(world: World) -> None:
    chat = await world.chat()
    key = await world.operator.rpc("issue_credential", role="chat-service", exec=False)
    key.pop("role")
    owner = {"organization_id": new_id(), "owner_id": new_id(), "owner_name": "ann"}
    chats = {"chat_ids": [chat.id]}
    async with connected(
        Participant(), world.deployment.nats, **credential_options(key)
    ) as service:
        for rpc, body in (
            ("issue_token", {"role": "operator"}),
            ("issue_token", {"role": "chat-service"}),
            ("issue_token", {"role": "chat", **chats, **owner}),
            ("issue_token", {"role": "frontend", "exec": True, **chats}),
            ("frontend_credential", {"exec": True, **chats}),
        ):
            with pytest.raises(ServiceError) as refusal:
                await service.rpc(rpc, **body)
            assert refusal.value.code == 403, (rpc, body)
        of_operator = await world.operator.rpc("issue_token", role="operator")
        for rpc, body in (
            ("issue_token", {"role": "chat", "exec": False, **chats, **owner}),
            ("issue_token", {"role": "frontend", **chats}),
            ("frontend_credential", chats),
        ):
            assert await service.rpc(rpc, **body)
        listed = (await service.rpc("list_tokens"))["tokens"]
        assert {token["role"] for token in listed} <= {"chat", "frontend"}
        assert (await service.rpc("revoke_token", id=of_operator["id"]))["revoked"] is False


async def test_on_the_bus_the_tools_are_unknown(world: World) -> None:
    chat = await world.chat()

    assert "execute" in await chat.call_error("execute", {"command": "id"})
