"""Clients without tasks that give up a request after a while, over a build that takes longer.

`make mcp-patience` runs it in real time: the build lasts 180 s, the clients give up after 60 s, and the server has its
default settings. In `make test` the build lasts a few seconds, and the server's waits are short.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import REQUEST_TIMEOUT

from tests.mcp.conftest import ChatToken, Era, Replica, progress
from tests.rigs.processes import Up

BUILD_SECONDS = float(os.environ.get("MCP_BUILD_SECONDS", "4"))
REAL = BUILD_SECONDS >= 60
CLIENT_LIMIT = 60.0
"""Seconds after which the clients give up a request."""
PARAMETERS = {"seconds": f"{BUILD_SECONDS:g}"}


@pytest.fixture
def patient(running: Up) -> Iterator[Replica]:
    """A process with the default waits if the test runs in real time."""
    started = Replica(running, {}) if REAL else Replica(running)
    yield started
    assert started.process.stop() == 0, started.process.output()


async def create(client: Client, *, with_progress: bool) -> tuple[dict[str, Any], list[str]]:
    """Do what a model does: create the workspace, and go on as the results say; return the last and all statuses.

    A request that the client gives up is asked again.
    """
    tool, args, said = "create_workspace", {"template": "slow", "parameters": PARAMETERS}, []
    callback = progress()[0] if with_progress else None
    while True:
        try:
            called = await client.call_tool(
                tool, args, read_timeout_seconds=CLIENT_LIMIT, progress_callback=callback
            )
        except MCPError as error:
            if error.error.code != REQUEST_TIMEOUT:
                raise
            said.append("given up")
            continue
        assert not called.is_error, called
        result = called.structured_content
        assert result is not None
        said.append(str(result.get("status", "done")))
        if result.get("status") != "in_progress":
            return result, said
        assert result["next_step"] == "call wait_for_workspace"
        tool, args = "wait_for_workspace", {}


async def test_every_client_that_gives_up_early_gets_to_a_workspace_that_takes_longer(
    running: Up, patient: Replica
) -> None:
    async def run(era: Era, *, with_progress: bool) -> tuple[dict[str, Any], list[str]]:
        async with ChatToken(running).client(patient.url, era) as client:
            return await create(client, with_progress=with_progress)

    kinds = [(era, asks) for era in ("auto", "legacy") for asks in (False, True)]
    ended = await asyncio.gather(*(run(era, with_progress=asks) for era, asks in kinds))

    for (era, asks), (result, said) in zip(kinds, ended, strict=True):
        progressing = "with" if asks else "without"
        sys.stdout.write(f"{era}, {progressing} progress: {', '.join(said)}\n")
        assert result["created"] is True
        assert result["workspace_name"]
        if REAL or not asks:
            assert len(said) > 1, said
