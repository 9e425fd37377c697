"""Restate: a virtual object a chat holds the state and the log.

The tool call is an invocation that waits on an awakeable, which the object resolves at the end.
Sources use the one-way ingress (…/send), which answers once the invocation is durable; the tool call
is accepted the same way and its result awaited with the ingress's attach.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import aiohttp
import hypercorn.asyncio
import restate
from hypercorn.config import Config

from tests.bench.peer import Event, Peer, make_event
from tests.bench.processes import Server, answers, free_port

# --- flow begin
AFTER = {
    "build_started": "building",
    "build_succeeded": "agent_connecting",
    "agent_connected": "scripts_running",
    "lifecycle_ready": "ready",
}
ORDER = ["none", *AFTER.values(), "failed"]
workspace = restate.VirtualObject("Workspace")
tool = restate.Service("Tool")


async def settle(ctx: Any) -> None:
    state, waiter = await ctx.get("state"), await ctx.get("waiter")
    if waiter and state in ("ready", "failed"):
        ctx.resolve_awakeable(waiter, {"chat": ctx.key(), "state": state})


@workspace.handler("open")
async def open_workspace(ctx: restate.ObjectContext, waiter: str) -> None:
    ctx.set("waiter", waiter)
    if await ctx.get("state") is None:
        ctx.set("state", "none")
    await settle(ctx)


@workspace.handler("event")
async def on_event(ctx: restate.ObjectContext, event: dict) -> None:  # type: ignore[type-arg]
    if await ctx.get(event["id"]) is None:
        ctx.set(event["id"], event)
        state = await ctx.get("state") or "none"
        ctx.set("state", max(state, AFTER[event["kind"]], key=ORDER.index))
        await settle(ctx)


@tool.handler("create_workspace")
async def create_workspace(ctx: restate.Context, chat: str) -> dict:  # type: ignore[type-arg]
    waiter, result = ctx.awakeable()
    ctx.object_send(open_workspace, key=chat, arg=waiter)
    return await result


async def call_tool(
    http: aiohttp.ClientSession, ingress: str, chat: str
) -> asyncio.Task[Mapping[str, Any]]:
    async with http.post(f"{ingress}/Tool/create_workspace/send", json=chat) as answer:
        answer.raise_for_status()
        invocation = (await answer.json())["invocationId"]

    async def result() -> Mapping[str, Any]:
        async with http.get(f"{ingress}/restate/invocation/{invocation}/attach") as answer:
            answer.raise_for_status()
            return await answer.json()

    return asyncio.create_task(result())


async def report(http: aiohttp.ClientSession, ingress: str, event: Event) -> None:
    url = f"{ingress}/Workspace/{event['chat']}/event/send"
    async with http.post(url, json=event) as answer:
        answer.raise_for_status()
        await answer.read()


# --- flow end


def http_client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=300),
        timeout=aiohttp.ClientTimeout(total=None),
    )


class Driver(Peer):
    """restate-server, with the handlers in the app's process."""

    async def start(self) -> None:
        node, ingress, admin, service = (free_port() for _ in range(4))
        self.ingress, self.admin = f"http://127.0.0.1:{ingress}", f"http://127.0.0.1:{admin}"
        env = {
            "RESTATE_BASE_DIR": str(self.root / "restate"),
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
            "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}",
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "warn",
            # The default of 1000 would let waiting calls starve the events.
            "RESTATE_WORKER__INVOKER__CONCURRENT_INVOCATIONS_LIMIT": "20000",
            "DO_NOT_TRACK": "1",
        }
        program = os.environ["RESTATE_SERVER"]
        self.server = Server([program, "--no-logo"], self.root / "restate.log", env)
        self.stack.callback(self.server.stop)
        self._serve(service)
        self.http = http_client()
        self.stack.push_async_callback(self.http.close)
        for port in (service, admin, ingress):
            await answers(port)
        await self._register(f"http://127.0.0.1:{service}")

    def _serve(self, port: int) -> None:
        config = Config()
        config.bind = [f"127.0.0.1:{port}"]
        config.accesslog = config.errorlog = None
        config.h2_max_concurrent_streams = 20000
        done = asyncio.Event()
        app = restate.app([workspace, tool])
        serving = asyncio.create_task(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=done.wait)
        )

        async def end() -> None:
            done.set()
            await asyncio.wait([serving], timeout=5)

        self.stack.push_async_callback(end)

    async def _register(self, uri: str) -> None:
        words = ""
        for _ in range(100):
            async with self.http.post(f"{self.admin}/deployments", json={"uri": uri}) as answer:
                if answer.status in (200, 201):
                    return
                words = await answer.text()
            await asyncio.sleep(0.2)
        raise RuntimeError(words)

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        return await call_tool(self.http, self.ingress, chat)

    def pids(self) -> dict[str, int]:
        return {"restate": self.server.pid}

    def address(self) -> dict[str, Any]:
        return {"ingress": self.ingress}

    async def verify(self, chats: Sequence[str]) -> dict[str, int]:
        run = chats[0].rsplit("-", 1)[0]  # chats of a measure are RUN-NUMBER

        async def count(where: str) -> int:
            query = f"select count(*) as n from state where service_name = 'Workspace' and {where}"
            async with self.http.post(
                f"{self.admin}/query",
                json={"query": query},
                headers={"accept": "application/json"},
            ) as answer:
                return int(json.loads(await answer.read())["rows"][0]["n"])

        of_run = f"service_key like '{run}-%'"
        return {
            "ready": await count(f"{of_run} and key = 'state' and value_utf8 = '\"ready\"'"),
            "logged": await count(f"{of_run} and key like '{run}-%'"),
        }

    async def connect(self, address: Mapping[str, Any]) -> None:
        self.http, self.ingress = http_client(), address["ingress"]

    async def event(self, chat: str, kind: str) -> None:
        await report(self.http, self.ingress, make_event(chat, kind))

    async def close(self) -> None:
        await self.http.close()
