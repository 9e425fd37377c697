"""`workspaced mcp` on stdin and stdout, with the client of the SDK."""

from __future__ import annotations

import pytest

from tests.mcp.conftest import Era, on_stdio, progress
from tests.rigs.messages import new_id
from tests.rigs.processes import Up


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_create_reports_progress_until_the_workspace_is_ready(running: Up, era: Era) -> None:
    async with on_stdio(running, f"a chat {new_id()}", era) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
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
