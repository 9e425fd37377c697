"""The HTTP interface (docs/contract.md, section 10), as a client sees it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.rigs.client import Chat, Participant, ServiceError, connected, role_options
from tests.rigs.http import HttpClient, http_client
from tests.rigs.messages import new_id
from tests.rigs.processes import resident_mib
from tests.rigs.world import ORGANIZATION, World


@pytest.fixture
async def operator(world: World) -> AsyncIterator[HttpClient]:
    """A client with the operator's token that `up` keeps."""
    assert world.deployment.up is not None
    token = (world.deployment.credentials / "operator.token").read_text()
    async with http_client(world.deployment.up.http, token) as client:
        yield client


async def token_for(world: World, role: str, **more: Any) -> dict[str, Any]:
    issued = await world.operator.rpc("issue_token", role=role, **more)
    return dict(issued)


async def with_token(world: World, client: HttpClient, role: str, **more: Any) -> HttpClient:
    return replace(client, token=(await token_for(world, role, **more))["token"])


def owned(chat: Chat) -> dict[str, Any]:
    return dict(chat.identity)


def chat_owner(chat: Chat) -> dict[str, Any]:
    return {"chat_ids": [chat.id], **chat.identity}


async def test_a_call_is_answered_with_the_data_of_tool_resolved(
    world: World, operator: HttpClient
) -> None:
    chat = await world.chat()
    service = await with_token(world, operator, "chat-service")

    path = f"/v1/chats/{chat.id}/tools/list_templates"
    status, answer = await service.ask("POST", path, {**owned(chat), "call_id": "mine"})

    assert status == 200
    assert answer == await chat.answer("mine")


async def test_an_open_call_is_accepted_and_its_answer_read_later(
    world: World, operator: HttpClient
) -> None:
    chat = await world.chat()
    body = {**owned(chat), "call_id": "c1", "wait_seconds": 0, "args": {"template_id": world.plain}}
    accepted = await operator.ask("POST", f"/v1/chats/{chat.id}/tools/create_workspace", body)
    job = await world.provisioner.job(chat)
    open_call = await operator.ask("GET", f"/v1/chats/{chat.id}/calls/c1")
    waiting = asyncio.create_task(
        operator.ask("GET", f"/v1/chats/{chat.id}/calls/c1?wait_seconds=300")
    )
    await world.provisioner.succeed(job)

    assert accepted[0] == 202
    assert accepted[1].keys() == {"call_id", "state", "deadline"}
    assert open_call[0] == 202
    assert open_call[1]["state"] == "building"
    assert open_call[1]["deadline"]
    assert (await waiting)[0] == 200
    answer = (await waiting)[1]
    assert answer["result"]["workspace_id"] == job.workspace_id
    assert answer["result"]["created"] is True
    assert await operator.ask("GET", f"/v1/chats/{chat.id}/calls/c1") == await waiting


async def test_a_call_of_other_content_is_a_conflict(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    path = f"/v1/chats/{chat.id}/tools/list_templates"

    first = await operator.ask("POST", path, {**owned(chat), "call_id": "c"})
    other = await operator.ask(
        "POST", path, {**owned(chat), "call_id": "c", "args": {"query": "x"}}
    )

    assert (first[0], other[0]) == (200, 409)


async def test_an_unknown_call_is_not_found(world: World, operator: HttpClient) -> None:
    status, _ = await operator.ask("GET", f"/v1/chats/{new_id()}/calls/none")

    assert status == 404


async def test_a_workspace_is_deleted(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    await world.ready(chat)

    status, answer = await operator.ask("DELETE", f"/v1/chats/{chat.id}/workspace")
    job = await world.provisioner.job(chat, "delete")
    await world.provisioner.succeed(job)

    assert (status, answer) == (202, {"state": "ready"})


async def test_a_build_is_canceled_and_a_workspace_is_kept(
    world: World, operator: HttpClient
) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    token = await with_token(world, operator, "chat", **chat_owner(chat))
    path = f"/v1/chats/{chat.id}"

    answers = [
        await token.ask("POST", f"{path}/build/cancel", {"build_id": new_id()}),
        await token.ask("POST", f"{path}/build/cancel", {"reason": "too slow"}),
    ]
    await chat.answer(call)
    answers += [
        await token.ask("POST", f"{path}/build/cancel", {"build_id": job.build_id}),
        await token.ask("POST", f"{path}/keep", {"seconds": 60}),
    ]
    wrong = [
        (await token.ask("POST", f"{path}/build/cancel", {"build_id": "x"}))[0],
        *[(await token.ask("POST", f"{path}/keep", b))[0] for b in ({}, {"seconds": 0})],
    ]

    assert answers == [
        (200, {"canceled": False}),
        (200, {"canceled": True, "build_id": job.build_id}),
        (200, {"canceled": False}),
        (200, {"stops_at": None}),
    ]
    assert wrong == [400, 400, 400]


async def test_reads_are_those_of_the_rpcs(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)

    for path, rpc, body in (
        (f"/v1/chats/{chat.id}", "get_chat", {"chat_id": chat.id}),
        (f"/v1/chats/{chat.id}/events", "read_events", {"chat_id": chat.id}),
        (f"/v1/chats/{chat.id}/events?after=3", "read_events", {"chat_id": chat.id, "after": 3}),
        (
            f"/v1/chats/{chat.id}/builds/{job.build_id}/log",
            "read_log",
            {"chat_id": chat.id, "build_id": job.build_id},
        ),
        (
            f"/v1/chats?owner_id={chat.owner_id}",
            "list_chats",
            {"owner_id": chat.owner_id},
        ),
    ):
        assert await operator.ask("GET", path) == (200, await world.operator.rpc(rpc, **body)), path


async def test_templates_are_read_without_a_chat(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    listed = await chat.call("list_templates")
    one = await chat.call("read_template", {"template_id": world.rich})
    own = await with_token(world, operator, "chat", **chat_owner(chat))

    asked = f"organization_id={ORGANIZATION}"
    assert await operator.ask("GET", f"/v1/templates?{asked}") == (200, listed)
    assert await operator.ask("GET", f"/v1/templates/{world.rich}?{asked}") == (200, one)
    assert await own.ask("GET", "/v1/templates") == (200, listed)
    assert (await operator.ask("GET", "/v1/templates"))[0] == 400
    assert (await operator.ask("GET", f"/v1/templates/{new_id()}?{asked}"))[0] == 404
    assert (await own.ask("GET", f"/v1/templates?organization_id={new_id()}"))[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v2", None, 404),
        ("PUT", "/v1/chats", None, 405),
        ("GET", "/v1/chats/not-an-id", None, 400),
        ("GET", "/v1/chats?state=sleeping", None, 400),
        ("GET", "/v1/chats/{chat}/events?after=x", None, 400),
        ("GET", "/v1/chats/{chat}/calls/a.b", None, 400),
        ("GET", "/v1/chats/{chat}/calls/c?wait_seconds=-1", None, 400),
        ("GET", "/v1/chats/{chat}/builds/none/log", None, 400),
        ("POST", "/v1/chats/{chat}/tools/nope", {}, 404),
        ("POST", "/v1/chats/{chat}/tools/stop_workspace", {}, 400),
        ("POST", "/v1/chats/{chat}/tools/stop_workspace", [], 400),
        ("POST", "/v1/chats/{chat}/tools/stop_workspace", {"wait_seconds": "soon"}, 400),
    ],
)
async def test_a_wrong_request_is_a_problem(
    operator: HttpClient, method: str, path: str, body: object, status: int
) -> None:
    answer = await operator.ask(method, path.replace("{chat}", new_id()), body)

    assert answer[0] == status


async def test_a_body_must_be_json_and_not_too_large(operator: HttpClient) -> None:
    path = f"/v1/chats/{new_id()}/tools/stop_workspace"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    json_type = {"Content-Type": "application/json"}

    assert (await operator.ask("POST", path, data=b"a=b", headers=form))[0] == 415
    assert (await operator.ask("POST", path, data=b"{", headers=json_type))[0] == 400
    large = b'{"args": {"x": "' + b"x" * 600_000 + b'"}}'
    assert (await operator.ask("POST", path, data=large, headers=json_type))[0] == 413


@pytest.mark.parametrize(
    "request_lines",
    [
        pytest.param(["G@T /v1/chats HTTP/1.1"], id="method"),
        pytest.param(["GET /v1/chats HTTP/1.1", "no header"], id="header"),
        pytest.param([f"GET /v1/{'x' * 9000} HTTP/1.1"], id="long path"),
        pytest.param(["GET http://[::1/ HTTP/1.1"], id="address"),
        pytest.param(["POST {keep} HTTP/1.1", "Content-Length: x"], id="length"),
        pytest.param(["POST {keep} HTTP/1.1", "Transfer-Encoding: chunked", "", "zz"], id="chunk"),
        pytest.param(
            ["POST {keep} HTTP/1.1", "Content-Encoding: gzip", "Content-Length: 4", "", "none"],
            id="encoding",
        ),
    ],
)
async def test_a_request_that_can_t_be_read_is_a_problem(
    operator: HttpClient, request_lines: list[str]
) -> None:
    host = operator.url.removeprefix("http://")
    first, *others = request_lines
    lines = [first, f"Host: {host}", f"Authorization: Bearer {operator.token}", *others, "", ""]
    text = "\r\n".join(lines).replace("{keep}", f"/v1/chats/{new_id()}/keep")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    try:
        writer.write(text.encode())
        async with asyncio.timeout(10):
            head, _, rest = (await reader.readuntil(b"}")).partition(b"\r\n\r\n")
    finally:
        writer.close()
    body = json.loads(rest)

    assert head.split()[1] == b"400"
    assert b"\r\nContent-Type: application/problem+json" in head
    assert b"\r\nCache-Control: no-store" in head
    assert (body["status"], body["title"]) == (400, "Bad Request")
    assert "can't be read" in body["detail"]


async def test_unknown_keys_of_a_body_are_named(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    body = {**owned(chat), "colour": "red"}

    status, answer = await operator.ask("POST", f"/v1/chats/{chat.id}/tools/list_templates", body)

    assert status == 200
    assert answer["ignored"] == ["colour"]


async def test_a_request_without_a_valid_token_is_refused(operator: HttpClient) -> None:
    for token in (None, "none"):
        status, _ = await replace(operator, token=token).ask("GET", "/v1/chats")
        assert status == 401


async def test_many_requests_with_a_token_may_come_at_once(operator: HttpClient) -> None:
    answers = await asyncio.gather(*(operator.ask("GET", "/v1/chats") for _ in range(150)))

    assert [status for status, _ in answers] == [200] * 150


async def test_the_operators_token_is_private(world: World) -> None:
    mode = (world.deployment.credentials / "operator.token").stat().st_mode

    assert stat.S_IMODE(mode) == 0o600


async def test_a_token_of_a_chat_is_for_that_chat_and_owner(
    world: World, operator: HttpClient
) -> None:
    chat = await world.chat()
    own = await with_token(world, operator, "chat", **chat_owner(chat))
    path = f"/v1/chats/{chat.id}/tools/list_templates"

    assert (await own.ask("POST", path))[0] == 200
    assert (await own.ask("POST", path, {"owner_id": new_id()}))[0] == 403
    assert (await own.ask("POST", path, {"organization_id": new_id()}))[0] == 403
    assert (await own.ask("GET", f"/v1/chats/{new_id()}"))[0] == 403
    assert (await own.ask("GET", f"/v1/stream?chat={new_id()}"))[0] == 403


async def test_chat_services_manage_tokens_of_chats_and_frontends_only(world: World) -> None:
    chat = await world.chat()
    issued = await world.service.rpc("issue_token", role="frontend", chat_ids=[chat.id])
    checked = await world.service.rpc("check_token", token=issued["token"])
    operators = await token_for(world, "operator")

    assert checked["id"] == issued["id"]
    assert checked["chat_ids"] == [chat.id]
    listed = (await world.service.rpc("list_tokens"))["tokens"]
    assert issued["id"] in {token["id"] for token in listed}
    assert {token["role"] for token in listed} <= {"chat", "frontend"}
    for rpc, body in (
        ("issue_token", {"role": "operator"}),
        ("issue_token", {"role": "chat-service"}),
        ("check_token", {"token": operators["token"]}),
    ):
        with pytest.raises(ServiceError) as refused:
            await world.service.rpc(rpc, **body)
        assert refused.value.code == 403
    assert await world.service.rpc("revoke_token", id=operators["id"]) == {"revoked": False}
    assert await world.service.rpc("revoke_token", id=issued["id"]) == {"revoked": True}
    with pytest.raises(ServiceError) as unknown:
        await world.service.rpc("check_token", token=issued["token"])
    assert unknown.value.code == 403


@pytest.mark.parametrize(
    "body",
    [
        {"role": "chat"},
        {"role": "frontend"},
        {"role": "operator", "ttl_seconds": 8 * 24 * 3600},
        {"role": "chat-service", "ttl_seconds": 31 * 24 * 3600},
        {"role": "chat-service", "chat_ids": [new_id()]},
        {"role": "chat-service", "colour": "red"},
    ],
)
async def test_a_token_that_makes_no_sense_is_not_issued(world: World, body: Any) -> None:
    with pytest.raises(ServiceError) as refused:
        await world.operator.rpc("issue_token", **body)

    assert refused.value.code == 400


async def test_tokens_are_issued_listed_and_revoked_by_command(
    world: World, operator: HttpClient
) -> None:
    up = world.deployment.up
    assert up is not None
    chat_id = new_id()
    issued = await asyncio.to_thread(
        up.data, "token", "issue", "--role", "frontend", "--chat", chat_id, "--for", "30d"
    )
    listed = (await asyncio.to_thread(up.data, "token", "list"))["tokens"]
    client = replace(operator, token=issued["token"])
    before = await client.ask("GET", f"/v1/chats/{chat_id}")
    await asyncio.to_thread(up.data, "token", "revoke", issued["id"])
    after = await client.ask("GET", f"/v1/chats/{chat_id}")
    again = await asyncio.to_thread(up.run, "token", "revoke", issued["id"])

    assert issued.keys() == {"token", "id", "role", "expires_at"}
    assert issued["id"] in {token["id"] for token in listed}
    assert before[0] == 200
    assert (before[1]["state"], before[1]["version"]) == ("none", 0)
    assert after[0] == 401
    assert again.returncode == 1


async def test_host_and_origin_must_be_those_of_the_server(operator: HttpClient) -> None:
    path = "/v1/chats"

    assert (await operator.ask("GET", path, headers={"Host": "localhost"}))[0] == 200
    assert (await operator.ask("GET", path, headers={"Host": "evil.example"}))[0] == 403
    assert (await operator.ask("GET", path, headers={"Origin": operator.url}))[0] == 200
    assert (await operator.ask("GET", path, headers={"Origin": "https://evil.example"}))[0] == 403


async def test_the_openapi_document_needs_no_token(operator: HttpClient) -> None:
    status, document = await replace(operator, token=None).ask("GET", "/openapi.json")

    assert status == 200
    assert document["openapi"].startswith("3.1")
    assert "/v1/chats/{chat_id}/tools/{tool}" in document["paths"]


# -- streams --------------------------------------------------------------------------------------


async def test_a_stream_begins_with_the_present_state_and_goes_on(
    world: World, operator: HttpClient
) -> None:
    chat = await world.chat()
    frontend = await with_token(world, operator, "frontend", chat_ids=[chat.id])

    async with frontend.stream("/v1/stream") as stream:
        first = await stream.next()
        _, job = await world.building(chat)
        building = await stream.state("building")
        await world.provisioner.log(job.data, 1, "hello")
        line = await stream.next("log")
        await world.provisioner.succeed(job)
        ready = await stream.state("ready")

    assert (first.data["data"]["state"], first.data["data"]["version"]) == ("none", 0)
    assert first.data["data"]["cause"] is None
    assert building.data["type"] == "workspaced.state_changed.v1"
    assert line.data["data"]["output"] == "hello"
    assert ready.data["data"]["build"]["id"] == job.build_id


async def test_a_stream_is_resumed_with_what_was_missed_and_nothing_twice(
    world: World, operator: HttpClient
) -> None:
    chat = await world.chat()
    frontend = await with_token(world, operator, "frontend", chat_ids=[chat.id])
    _, job = await world.building(chat)
    async with frontend.stream("/v1/stream") as stream:
        await stream.state("building")
        for number in (1, 2):
            await world.provisioner.log(job.data, number, f"line {number}")
        await stream.next("log")
        last = await stream.next("log")
    for number in (3, 4):
        await world.provisioner.log(job.data, number, f"line {number}")
    await world.provisioner.succeed(job)
    await chat.state("ready")

    async with frontend.stream("/v1/stream", last.id) as resumed:
        state = await resumed.next()
        lines = [await resumed.next(), await resumed.next()]
        await world.provisioner.log(job.data, 5, "line 5")
        lines.append(await resumed.next())

    assert state.data["data"]["state"] == "ready"
    assert [line.data["data"]["sequence"] for line in lines] == [3, 4, 5]
    assert last.data["data"]["sequence"] == 2


async def test_a_stream_ends_when_its_token_is_revoked(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    issued = await token_for(world, "frontend", chat_ids=[chat.id])
    frontend = replace(operator, token=issued["token"])

    async with frontend.stream("/v1/stream") as stream:
        await stream.next("state")
        await world.operator.rpc("revoke_token", id=issued["id"])
        end = await stream.next()

    assert (end.kind, end.data) == ("end", {"reason": "token"})


async def test_a_wait_ends_when_its_token_is_revoked(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    issued = await token_for(world, "chat", **chat_owner(chat))
    own = replace(operator, token=issued["token"])
    path = f"/v1/chats/{chat.id}/tools/create_workspace"
    waiting = asyncio.create_task(own.ask("POST", path, {"args": {"template_id": world.plain}}))
    job = await world.provisioner.job(chat)

    await world.operator.rpc("revoke_token", id=issued["id"])

    assert (await waiting)[0] == 401
    await world.provisioner.fail(job)


async def test_a_stream_of_all_chats_is_for_operators(world: World, operator: HttpClient) -> None:
    chat = await world.chat()
    service = await with_token(world, operator, "chat-service")

    async with operator.stream("/v1/stream") as stream:
        _, job = await world.building(chat)
        while (event := await stream.next("state")).data["data"]["chat_id"] != chat.id:
            pass
        await world.provisioner.fail(job)

    assert event.data["data"]["state"] == "building"
    assert (await service.ask("GET", "/v1/stream"))[0] == 403


async def test_a_stream_tells_operators_who_comes_and_goes_if_they_ask_for_it(
    world: World, operator: HttpClient
) -> None:
    chat = await world.chat()
    service = await with_token(world, operator, "chat-service")
    path = f"/v1/stream?chat={chat.id}&presence=true"
    options = role_options(world.deployment.credentials, "operator")

    async with (
        operator.stream(path) as stream,
        connected(Participant(), world.deployment.nats, **options),
    ):
        told = await stream.next("presence")

    assert told.data == {}
    assert (await service.ask("GET", path))[0] == 403
    assert (await operator.ask("GET", f"{path}s"))[0] == 400


async def test_many_streams_at_once_take_little_memory_and_it_stays_flat(
    world: World, operator: HttpClient
) -> None:
    """With STREAMS=1000 for more of them."""
    chat = await world.chat()
    frontend = await with_token(world, operator, "frontend", chat_ids=[chat.id])
    _, job = await world.building(chat)
    streams, lines, at_once = int(os.environ.get("STREAMS", "100")), 100, 10
    up = world.deployment.up
    assert up is not None
    reached, before = asyncio.Semaphore(0), resident_mib(up.process.pid)

    async def follow(session: aiohttp.ClientSession) -> list[int]:
        async with replace(frontend, session=session).stream("/v1/stream") as stream:
            await stream.state("building")
            reached.release()
            seen = []
            while len(seen) < lines:
                seen.append((await stream.next("log")).data["data"]["sequence"])
                if len(seen) % at_once == 0:
                    reached.release()
            return seen

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        followers = [group.create_task(follow(session)) for _ in range(streams)]
        for _ in followers:
            await reached.acquire()
        opened = resident_mib(up.process.pid)
        for number in range(1, lines + 1):
            await world.provisioner.log(job.data, number, "a line " * 20)
            if number % at_once == 0:
                for _ in followers:
                    await reached.acquire()
    after = resident_mib(up.process.pid)
    await world.provisioner.fail(job)

    assert all(follower.result() == list(range(1, lines + 1)) for follower in followers)
    assert opened - before < 20 + streams * 0.2, (before, opened)
    assert after - opened < 20, (opened, after)


# -- the document and the server ------------------------------------------------------------------


async def test_schemathesis_finds_no_difference_between_document_and_gateway(
    world: World, operator: HttpClient, tmp_path: Path
) -> None:
    """`make fuzz-http` runs the same with more examples and another seed each time."""
    more = os.environ.get("HTTP_EXAMPLES")
    settings = tmp_path / "schemathesis.toml"
    # An operator's token has no organization, and waiting for calls that nobody makes shows nothing.
    fixed = {"query.organization_id": json.dumps(ORGANIZATION), "query.wait_seconds": "0"}
    lines = [f'"{name}" = {value}\n' for name, value in fixed.items()]
    # Nor has it an owner: whether a request needs them depends on its token, which no schema can say.
    accepted = ["2xx", "400", "401", "403", "404", "409", "429", "5xx"]
    lines += [
        "[[operations]]\n",
        'include-path = "/v1/chats/{chat_id}/tools/{tool}"\n',
        f"checks.positive_data_acceptance.expected-statuses = {json.dumps(accepted)}\n",
    ]
    settings.write_text("".join(("[parameters]\n", *lines)))
    done = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("schemathesis"), "--config-file", settings, "run"),
        *(f"{operator.url}/openapi.json", "--header", f"Authorization: Bearer {operator.token}"),
        *("--exclude-path", "/v1/stream", "--phases", "coverage,fuzzing", "--no-color"),
        *(("--max-examples", more) if more else ("--max-examples", "3", "--seed", "1")),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await done.communicate()

    assert done.returncode == 0, said.decode()
    assert re.search(r"[1-9][0-9]{2,} generated, [0-9]+ passed", said.decode()), said.decode()
