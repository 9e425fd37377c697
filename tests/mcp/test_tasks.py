"""Tasks over HTTP: calls that go on, looked up by any process with the same key."""

from __future__ import annotations

import pytest
from mcp.shared.exceptions import MCPError

from tests.mcp.conftest import ChatToken, Gate, Replica, result_of_wait
from tests.mcp.task_client import Tasks, TaskState, cancel, get
from tests.rigs.processes import Up


async def test_a_task_of_create_is_fetched_from_another_replica_after_the_first_was_killed(
    running: Up, replica: Replica, chat: ChatToken, gate: Gate
) -> None:
    first, tasks = Replica(running), Tasks()
    try:
        async with chat.client(first.url, "auto", tasks) as client:
            await client.call_tool("create_workspace", gate.args)
            [task] = tasks.made
            assert task.status == "working"
            assert "building" in (task.status_message or "")
            assert "600 s" in (task.status_message or "")
            assert task.ttl_ms == 24 * 3600 * 1000
    finally:
        first.process.kill()

    async with chat.client(replica.url, "auto", Tasks()) as client:
        working = await get(client, task.task_id)
        assert working.status == "working"
        assert working.created_at == task.created_at
        gate.open()
        made = await result_of_wait(client)
        done = await get(client, task.task_id)

    assert done.status == "completed"
    assert done.result is not None
    assert done.result["structuredContent"]["created"] is True
    assert done.result["structuredContent"] == made
    assert not done.result.get("isError")


async def test_a_task_belongs_to_the_chat_of_its_token(
    running: Up, replica: Replica, chat: ChatToken, gate: Gate
) -> None:
    tasks = Tasks()
    async with chat.client(replica.url, "auto", tasks) as client:
        await client.call_tool("create_workspace", gate.args)
        [task] = tasks.made
        with pytest.raises(MCPError, match="no such task"):
            await get(client, task.task_id[:-2] + "AA")
    async with ChatToken(running).client(replica.url, "auto", Tasks()) as client:
        with pytest.raises(MCPError, match="no such task"):
            await get(client, task.task_id)
        with pytest.raises(MCPError, match="no such task"):
            await cancel(client, task.task_id)


async def test_a_canceled_task_ends_its_wait_and_the_build_goes_on(
    replica: Replica, chat: ChatToken, gate: Gate
) -> None:
    tasks = Tasks()
    async with chat.client(replica.url, "auto", tasks) as client:
        await client.call_tool("create_workspace", gate.args)
        [task] = tasks.made
        await cancel(client, task.task_id)

        assert (await get(client, task.task_id)).status == "cancelled"
        status = (await client.call_tool("workspace_status", {})).structured_content
        assert status is not None
        assert status["state"] == "building"
        assert status["last_log_line"] == "first line"


async def test_what_is_answered_within_a_second_is_no_task_and_a_failed_build_is_an_error(
    replica: Replica, chat: ChatToken
) -> None:
    tasks = Tasks()
    async with chat.client(replica.url, "auto", tasks) as client:
        listed = await client.call_tool("list_templates", {})
        assert listed.structured_content is not None
        assert listed.structured_content["count"] == 2
        wrong = await client.call_tool("create_workspace", {"template": "no such template"})
        assert wrong.is_error
        assert not tasks.made

        args = {"template": "python", "parameters": {"gate": "fail"}}
        failed = await client.call_tool("create_workspace", args)
        if tasks.made:
            result = await finished(client, tasks.made[0])
            assert result["isError"] is True
            assert "build_id" in result["structuredContent"]
        else:  # the build has failed within a second
            assert failed.is_error


async def finished(client, task: TaskState) -> dict:
    """Wait for the end of the open call, and return the result of its task."""
    await result_of_wait(client)
    done = await get(client, task.task_id)
    assert done.status == "completed"
    assert done.result is not None
    return done.result


async def test_a_command_is_a_task_until_it_ends_and_a_cancel_sends_term(
    replica: Replica, chat: ChatToken
) -> None:
    tasks = Tasks()
    async with chat.client(replica.url, "auto", tasks) as client:
        await client.call_tool("create_workspace", {"template": "python"})
        await result_of_wait(client)
        tasks.made.clear()

        short = await client.call_tool("execute", {"command": "echo short"})
        assert short.structured_content is not None
        assert short.structured_content["output"] == "short\n"
        assert not tasks.made

        waiting = {"command": "echo begun; read line; echo got $line", "open_stdin": True}
        await client.call_tool("execute", waiting)
        [task] = tasks.made
        state = await get(client, task.task_id)
        assert state.status == "working"
        assert (state.status_message or "").endswith("begun")
        listed = (await client.call_tool("process_list", {})).structured_content
        assert listed is not None
        exec_id = next(one["exec_id"] for one in listed["processes"] if one["status"] == "running")
        await client.call_tool("process_input", {"exec_id": exec_id, "data": "it\n"})
        await client.call_tool(
            "process_output", {"exec_id": exec_id, "after": 6, "wait_seconds": 20}
        )
        done = await get(client, task.task_id)
        while done.status == "working":
            await client.call_tool(
                "process_output", {"exec_id": exec_id, "after": 100, "wait_seconds": 20}
            )
            done = await get(client, task.task_id)
        assert done.result is not None
        assert done.result["structuredContent"]["output"] == "begun\ngot it\n"
        assert done.result["structuredContent"]["exit_code"] == 0

        tasks.made.clear()
        await client.call_tool("execute", {"command": "exec sleep 600"})
        [task] = tasks.made
        await cancel(client, task.task_id)
        state = await get(client, task.task_id)
        while state.status == "working":
            listed = (await client.call_tool("process_list", {})).structured_content
            assert listed is not None
            [exec_id] = [
                one["exec_id"] for one in listed["processes"] if one["command"] == "exec sleep 600"
            ]
            await client.call_tool("process_output", {"exec_id": exec_id, "wait_seconds": 20})
            state = await get(client, task.task_id)
        assert state.status == "cancelled"
