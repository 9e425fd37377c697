"""One running workspaced for the tests of MCP, and clients of the SDK on stdio and over HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
import workspaced
from mcp import Client, StdioServerParameters
from mcp.client.extension import ClientExtension
from mcp.client.streamable_http import streamable_http_client

from tests.cli.template_folders import folder
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, Process, Up, environment, up
from tests.rigs.servers import free_port

TEMPLATE = """
name = "python"
pool = "local"

[[parameter]]
name = "gate"
type = "string"
default = ""

[build]
start = '''
echo first line
test "$WORKSPACED_PARAM_GATE" != fail || exit 3
if test -n "$WORKSPACED_PARAM_GATE"; then while test ! -e "$WORKSPACED_PARAM_GATE"; do sleep 0.1; done; fi
echo last line
'''

[[agent]]
name = "main"
"""
SLOW = """
name = "slow"
pool = "local"

[[parameter]]
name = "seconds"
type = "number"
default = 0

[build]
start = "sleep $WORKSPACED_PARAM_SECONDS"
"""
WAIT = 1.0
"""Seconds for which requests without tasks wait, with and without progress."""
Era = Literal["auto", "legacy"]
ENVIRONMENT = {
    "WORKSPACED_MCP_WAIT": f"{WAIT}",
    "WORKSPACED_MCP_WAIT_WITH_PROGRESS": "20",
    "WORKSPACED_CONFINEMENT": "rlimits",
}

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    parent = tmp_path_factory.mktemp("mcp")
    with up(parent / "data", env=ENVIRONMENT) as server:
        for name, template in (("python", TEMPLATE), ("slow", SLOW)):
            server.data("template", "push", folder(parent, template, name))
        yield server


@pytest.fixture
async def ws(running: Up) -> AsyncIterator[workspaced.Workspaced]:
    """A chat service that looks from outside."""
    key = running.seed_file("chat-service")
    async with workspaced.connect(running.nats, key=key, service="looking") as connected:
        yield connected


class Gate:
    """A file for which a build waits."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def args(self) -> dict[str, Any]:
        return {"template": "python", "parameters": {"gate": str(self.path)}}

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gate(running: Up) -> Iterator[Gate]:
    directory = Path(f"/tmp/workspaced-gate-{new_id()}")
    gate = Gate(directory)
    yield gate
    gate.open()
    directory.unlink()


class Replica:
    """A process of `workspaced mcp --http-port`."""

    def __init__(self, running: Up, env: dict[str, str] = ENVIRONMENT) -> None:
        words = ("mcp", "--http-port", str(free_port()), "--data-dir", running.directory)
        self.process = Process(*words, env=env)
        try:
            line = json.loads(self.process.line())
        except BaseException:
            self.process.kill()
            raise
        assert line["ready"] is True
        assert line.keys() == {"ready", "mcp"}
        self.url = line["mcp"]


@pytest.fixture(scope="session")
def replica(running: Up) -> Iterator[Replica]:
    started = Replica(running)
    yield started
    assert started.process.stop() == 0, started.process.output()


class ChatToken:
    """A chat, and a token of it."""

    def __init__(self, running: Up, *words: str) -> None:
        self.id, self.owner = new_id(), workspaced.Owner(id=new_id(), name="ada")
        of_chat = ("--chat", self.id, "--organization", self.owner.organization)
        of_owner = ("--owner", self.owner.id, "--owner-name", "ada")
        issued = running.data("token", "issue", "--role", "chat", *of_chat, *of_owner, *words)
        self.token, self.token_id = issued["token"], issued["id"]

    @asynccontextmanager
    async def client(
        self, url: str, era: Era = "auto", *extensions: ClientExtension
    ) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {self.token}"}
        timeout = httpx2.Timeout(30, read=60)
        async with httpx2.AsyncClient(headers=headers, timeout=timeout) as http:
            transport = streamable_http_client(url, http_client=http)
            async with Client(transport, mode=era, extensions=extensions) as client:
                yield client


@pytest.fixture
def chat(running: Up) -> ChatToken:
    return ChatToken(running)


@asynccontextmanager
async def on_stdio(
    running: Up, name: str, era: Era = "auto", *extensions: ClientExtension
) -> AsyncIterator[Client]:
    """Connect to a new process of `workspaced mcp`."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "handlers", "mcp", "--data-dir", str(running.directory), "--chat", name],
        env={**environment(), **ENVIRONMENT},
        cwd=ROOT,
    )
    async with Client(parameters, mode=era, extensions=extensions) as client:
        yield client


Progress = tuple[Callable[[float, float | None, str | None], Any], list[tuple[float, str | None]]]


def progress() -> Progress:
    """Return a callback for progress notifications, and what it has got."""
    seen: list[tuple[float, str | None]] = []

    async def callback(done: float, _total: float | None, message: str | None) -> None:
        seen.append((done, message))

    return callback, seen


async def result_of_wait(client: Client) -> dict[str, Any]:
    """Call wait_for_workspace until the open call is answered, as its results ask for."""
    while True:
        result = (await client.call_tool("wait_for_workspace", {})).structured_content
        assert result is not None
        if result.get("status") != "in_progress":
            return result
