"""MCP over HTTP for clients without tasks: short waits, broken connections, tokens, Host and Origin."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anyio
import httpx2
import pytest
import workspaced
from mcp import Client
from mcp.shared.exceptions import MCPError

from handlers.runtime.rate_limit import BURST
from tests.mcp.conftest import INITIALIZE, ChatToken, Era, Gate, Replica, progress, result_of_wait
from tests.rigs.processes import Up

ACCEPT = {"Accept": "application/json, text/event-stream"}
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_client_with_a_short_limit_gets_to_a_workspace_that_takes_longer(
    replica: Replica, chat: ChatToken, gate: Gate, era: Era
) -> None:
    async with chat.client(replica.url, era) as client:
        result = (await client.call_tool("create_workspace", gate.args)).structured_content
        assert result is not None
        assert result.keys() == {
            *("status", "state", "build_id", "elapsed_ms", "deadline", "next_step")
        }
        assert result["status"] == "in_progress"
        assert result["next_step"] == "call wait_for_workspace"
        assert result["state"] == "building"

        gate.open()
        made = await result_of_wait(client)
        assert made["created"] is True
        assert await result_of_wait(client) == made


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_client_whose_connection_breaks_asks_again_and_gets_the_same_workspace(
    replica: Replica, chat: ChatToken, gate: Gate, era: Era
) -> None:
    callback, seen = progress()
    async with chat.client(replica.url, era) as client:
        with anyio.move_on_after(1):
            await client.call_tool("create_workspace", gate.args, progress_callback=callback)
    async with chat.client(replica.url, era) as client:
        made = None

        seen.clear()
        begun = anyio.Event()

        async def noted(*progressed: object) -> None:
            await callback(*progressed)  # type: ignore[arg-type]
            begun.set()

        async def ask_and_note() -> None:
            nonlocal made
            made = await client.call_tool("create_workspace", gate.args, progress_callback=noted)

        async with anyio.create_task_group() as group:
            group.start_soon(ask_and_note)
            await begun.wait()
            gate.open()
        assert made is not None
        assert made.structured_content is not None
        assert made.structured_content["created"] is True
        assert any("building" in (text or "") for _, text in seen)
        once_more = await client.call_tool("create_workspace", gate.args)
        assert once_more.structured_content is not None
        assert once_more.structured_content["status"] == "already_exists"
        assert (
            once_more.structured_content["workspace_id"] == made.structured_content["workspace_id"]
        )


async def test_an_address_that_sends_many_requests_without_a_token_gets_429(
    replica: Replica, chat: ChatToken
) -> None:
    own = httpx2.AsyncHTTPTransport(local_address="127.0.0.2")
    answers: list[httpx2.Response] = []
    async with httpx2.AsyncClient(headers=ACCEPT, transport=own) as http:
        # On a slow machine the address regains requests meanwhile.
        while not answers or answers[-1].status_code == 401:
            posts = (http.post(replica.url, json=INITIALIZE) for _ in range(BURST))
            answers += await asyncio.gather(*posts)
            answers.sort(key=lambda answer: answer.status_code)
    async with chat.client(replica.url, "auto") as client:
        listed = await client.list_tools()

    assert [answer.status_code for answer in answers[:BURST]] == [401] * BURST
    assert answers[-1].status_code == 429
    assert answers[-1].headers["retry-after"] == "1"
    assert answers[-1].headers["content-type"] == "application/problem+json"
    assert listed.tools


async def test_only_valid_tokens_of_chats_are_admitted(
    running: Up, replica: Replica, chat: ChatToken
) -> None:
    async with httpx2.AsyncClient(headers=ACCEPT) as http:
        plain = await http.post(replica.url, json=INITIALIZE)
        assert plain.status_code == 401
        assert plain.headers["www-authenticate"] == "Bearer"
        assert plain.headers["content-type"] == "application/problem+json"
        assert plain.json().keys() == {"status", "title", "detail"}

        frontend = running.data("token", "issue", "--role", "frontend", "--chat", chat.id)
        for token, status in ((frontend["token"], 403), ("x" * 43, 401)):
            headers = {"Authorization": f"Bearer {token}"}
            answer = await http.post(replica.url, json=INITIALIZE, headers=headers)
            assert answer.status_code == status, answer.text

        valid = {"Authorization": f"Bearer {chat.token}"}
        assert (await http.post(replica.url, json=INITIALIZE, headers=valid)).status_code == 200
        running.data("token", "revoke", chat.token_id)
        assert (await http.post(replica.url, json=INITIALIZE, headers=valid)).status_code == 401


@pytest.fixture(scope="module")
def silent(running: Up) -> Iterator[Replica]:
    """A process whose waits are long enough that only the end of a token ends them."""
    started = Replica(running, {"WORKSPACED_MCP_WAIT": "300"})
    yield started
    assert started.process.stop() == 0, started.process.output()


async def test_a_silent_wait_ends_when_its_token_is_revoked_and_the_build_goes_on(
    running: Up, silent: Replica, chat: ChatToken, gate: Gate, ws: workspaced.Workspaced
) -> None:
    async with chat.client(silent.url, "legacy") as client, asyncio.TaskGroup() as group:
        waiting = group.create_task(_refused(client, gate))
        await _is_building(ws, chat)
        await asyncio.to_thread(running.data, "token", "revoke", chat.token_id)
        refusal = await waiting

    assert "revoked" in refusal
    assert (await ws.rpc("get_chat", chat_id=chat.id))["state"] == "building"


async def test_a_silent_wait_ends_when_its_token_expires(
    running: Up, silent: Replica, gate: Gate
) -> None:
    chat = ChatToken(running, "--for", "5s")
    async with chat.client(silent.url, "legacy") as client:
        refusal = await _refused(client, gate)

    assert "expired" in refusal or "Server returned" in refusal  # 401, if it expired before


async def _refused(client: Client, gate: Gate) -> str:
    """Return the error of a call that the build keeps waiting."""
    with pytest.raises(MCPError) as refused:
        await client.call_tool("create_workspace", gate.args)
    return str(refused.value)


async def _is_building(ws: workspaced.Workspaced, chat: ChatToken) -> None:
    async for event in ws.chat(chat.id).watch():
        if isinstance(event, workspaced.State) and event.state == "building":
            return


async def test_a_wait_is_answered_401_when_its_token_is_revoked(
    running: Up, silent: Replica, chat: ChatToken, gate: Gate, ws: workspaced.Workspaced
) -> None:
    call = {"name": "create_workspace", "arguments": gate.args, "_meta": MODERN_META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers = {
        **ACCEPT,
        "Authorization": f"Bearer {chat.token}",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "create_workspace",
    }
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(http.post(silent.url, json=body))
        await _is_building(ws, chat)
        await asyncio.to_thread(running.data, "token", "revoke", chat.token_id)
        answer = await waiting

    # After some seconds of silence the protocol's library has begun a stream, which ends with an error.
    assert answer.status_code == 401 or "revoked" in answer.text, answer.text


async def test_host_and_origin_must_be_those_of_the_server(
    replica: Replica, chat: ChatToken
) -> None:
    own = replica.url.removesuffix("/mcp")
    port = own.rpartition(":")[2]
    async with httpx2.AsyncClient(
        headers={**ACCEPT, "Authorization": f"Bearer {chat.token}"}
    ) as http:
        for headers, status in (
            ({"Origin": own}, 200),
            ({"Host": f"localhost:{port}"}, 200),
            ({"Origin": "https://evil.example"}, 403),
            ({"Host": "evil.example"}, 403),
        ):
            answer = await http.post(replica.url, json=INITIALIZE, headers=headers)
            assert answer.status_code == status, (headers, answer.text)
        preflight = await http.options(replica.url, headers={"Origin": own})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == own
        assert (await http.get(f"{own}/readyz", headers={"Host": "any"})).status_code == 200
        assert (await http.get(f"{own}/other")).status_code == 404
        large = await http.post(replica.url, json={**INITIALIZE, "x": "x" * 600_000})
        assert large.status_code == 413


async def test_a_token_without_the_right_to_run_commands_sees_and_runs_none(
    running: Up, replica: Replica
) -> None:
    async with ChatToken(running, "--no-exec").client(replica.url) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "create_workspace" in names
        assert not names & {"execute", "read_file", "process_list"}
        refused = await client.call_tool("execute", {"command": "true"})
        assert refused.is_error
