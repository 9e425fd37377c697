"""The official conformance runner of MCP: `make mcp-conformance` installs Node and the runner, and names them here."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.mcp.conftest import ChatToken, Replica

RUNNER = os.environ.get("MCP_CONFORMANCE", "")
"""The command, words separated by blanks."""
SCENARIOS = ("server-initialize", "ping", "tools-list", "dns-rebinding-protection")
"""Those that need no tools, resources or prompts that the runner's own fixture server has."""
OF_THE_CONNECTION = ("content-length", "transfer-encoding")


@asynccontextmanager
async def with_token(url: str, token: str) -> AsyncIterator[str]:
    """Serve the same with this token added to each request, because the runner cannot send one."""

    async def relay(request: web.BaseRequest) -> web.StreamResponse:
        sent = {k: v for k, v in request.headers.items() if k.lower() not in OF_THE_CONNECTION}
        sent["Authorization"] = f"Bearer {token}"
        async with session.request(
            request.method, url, headers=sent, data=await request.read()
        ) as got:
            kept = {k: v for k, v in got.headers.items() if k.lower() not in OF_THE_CONNECTION}
            response = web.StreamResponse(status=got.status, headers=kept)
            await response.prepare(request)
            async for chunk in got.content.iter_any():
                await response.write(chunk)
            return response

    async with aiohttp.ClientSession() as session:
        runner = web.ServerRunner(web.Server(relay), shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
        finally:
            await runner.cleanup()


@pytest.mark.skipif(not RUNNER, reason="make mcp-conformance runs it")
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_scenario_passes(
    replica: Replica, chat: ChatToken, scenario: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with with_token(replica.url, chat.token) as url:
        done = await asyncio.create_subprocess_exec(
            *(*RUNNER.split(), "server", "--url", url, "--scenario", scenario),
            cwd=tmp_path_factory.mktemp("conformance"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await done.communicate()

    sys.stdout.write(said.decode())
    assert done.returncode == 0
    assert ", 0 failed, 0 warnings" in said.decode()
