"""`workspaced mcp` on stdin and stdout, with the client of the SDK."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from typing import Any

import anyio
import pytest
import workspaced

from tests.mcp.conftest import ENVIRONMENT, INITIALIZE, Era, Gate, on_stdio, progress
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, Up, environment


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_create_reports_progress_until_the_workspace_is_ready(running: Up, era: Era) -> None:
    async with on_stdio(running, f"a chat {new_id()}", era) as client:
        listed = (await client.list_tools()).tools
        names = [tool.name for tool in listed]
        ours = {tool["name"]: tool["inputSchema"] for tool in workspaced.tools("mcp")}
        assert {t.name: t.input_schema for t in listed if t.name in ours} == ours
        hints = {tool.name: tool.annotations for tool in listed}
        assert hints["read_file"].read_only_hint
        assert hints["create_workspace"].idempotent_hint
        assert hints["write_file"].destructive_hint
        assert names[:2] == ["create_workspace", "start_workspace"]
        assert names[-2:] == ["wait_for_workspace", "workspace_status"]

        callback, seen = progress()
        made = await client.call_tool(
            "create_workspace", {"template": "python"}, progress_callback=callback
        )

        assert not made.is_error
        assert made.structured_content is not None
        assert made.structured_content["created"] is True
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert any("building" in (text or "") for _, text in seen), seen
        ran = await client.call_tool("execute", {"command": "echo hello"})
        assert ran.structured_content is not None
        assert ran.structured_content["output"] == "hello\n"
        status = await client.call_tool("workspace_status", {})
        assert status.structured_content is not None
        assert status.structured_content["state"] == "ready"
        assert status.structured_content["last_log_line"] == "last line"


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_canceled_request_ends_the_wait_of_its_call_and_the_build_goes_on(
    running: Up, gate: Gate, ws: workspaced.Workspaced, era: Era
) -> None:
    chat_id, traceparent = new_id(), f"00-{'ab' * 16}-{'cd' * 8}-01"
    callback, seen = progress()
    async with on_stdio(running, chat_id, era) as client:
        async with anyio.create_task_group() as group:

            async def noted(*progressed: Any) -> None:
                await callback(*progressed)
                group.cancel_scope.cancel()

            group.start_soon(
                lambda: client.call_tool(
                    "create_workspace",
                    gate.args,
                    progress_callback=noted,
                    meta={"claudecode/toolUseId": "call_1", "traceparent": traceparent},
                )
            )
        answer = await ws.call(chat_id, "call_1")

    assert seen
    assert "canceled" in answer.result["error"]
    chat = await ws.rpc("get_chat", chat_id=chat_id)
    assert chat["state"] == "building"
    events = (await ws.rpc("read_events", chat_id=chat_id))["events"]
    assert events[0]["event"]["traceparent"].split("-")[1] == traceparent.split("-")[1]


async def test_a_closed_stdin_ends_no_call(
    running: Up, gate: Gate, ws: workspaced.Workspaced
) -> None:
    chat_id = new_id()
    meta = {"claudecode/toolUseId": "call/2", "progressToken": 1}
    call = {"name": "create_workspace", "arguments": gate.args, "_meta": meta}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "handlers", "mcp", "--chat", chat_id),
        *("--data-dir", str(running.directory)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment(), **ENVIRONMENT},
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for message in (
        INITIALIZE,
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ):
        process.stdin.write(json.dumps(message).encode() + b"\n")
    while b"notifications/progress" not in await process.stdout.readline():
        pass

    process.stdin.close()
    await process.stdout.read()
    assert await process.wait() == 0
    gate.open()
    answer = await ws.call(chat_id, hashlib.sha256(b"call/2").hexdigest())

    assert answer.result["created"] is True


async def test_a_signal_ends_the_process_while_it_waits_for_input(running: Up) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "handlers", "mcp", "--data-dir", str(running.directory)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment(), **ENVIRONMENT},
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
    answer = json.loads(await process.stdout.readline())
    assert answer["result"]["serverInfo"]["name"] == "workspaced"

    process.terminate()

    assert await process.wait() == 0
    process.stdin.close()


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['mcp'] = None\nfrom handlers.cli import main; sys.exit(main(['mcp']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "workspaced[mcp]" in done.stderr
    assert done.stderr.count("\n") == 1
