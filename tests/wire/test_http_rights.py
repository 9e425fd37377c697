"""Every token tries every method on every route of the HTTP interface; the contract's table says what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.rigs.client import Chat
from tests.rigs.http import HttpClient, http_client
from tests.rigs.messages import new_id
from tests.rigs.world import ORGANIZATION, World

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE")
EVERYBODY = frozenset({"operator", "chat-service", "chat", "frontend"})
CALLERS = EVERYBODY - {"frontend"}
SERVICES = CALLERS - {"chat"}
OPERATOR = frozenset({"operator"})
CHAT = "/v1/chats/{chat}"
TOOLS = ("create_workspace", "start_workspace", "stop_workspace", "list_templates", "read_template")
EXEC_TOOLS = (
    *("execute", "process_output", "process_input", "process_signal", "process_list"),
    *("read_file", "write_file", "edit_file", "list_files"),
)
ARGS: dict[str, dict[str, Any]] = {
    "read_template": {"template_id": new_id()},
    "create_workspace": {"template_id": new_id()},
    "execute": {"command": "true"},
    "process_output": {"exec_id": new_id()},
    "process_input": {"exec_id": new_id()},
    "process_signal": {"exec_id": new_id(), "signal": "TERM"},
    "read_file": {"path": "x"},
    "write_file": {"path": "x", "content": ""},
    "edit_file": {"path": "x", "edits": [{"old": "a", "new": "b"}]},
}


@dataclass(frozen=True)
class Row:
    """A route: its method, its path, the roles that may use it, and what they are answered in a new chat."""

    method: str
    path: str
    roles: frozenset[str]
    status: int = 200
    body: dict[str, Any] | None = None
    exec: bool = False
    """Whether it is for tokens with the right to run commands only."""
    of_chat: bool = True
    """Whether it is about one chat."""


def tool(name: str, *, execs: bool) -> Row:
    body = {"args": ARGS.get(name, {}), "wait_seconds": 30}
    return Row("POST", f"{CHAT}/tools/{name}", CALLERS, body=body, exec=execs)


TABLE = (
    *(tool(name, execs=False) for name in TOOLS),
    *(tool(name, execs=True) for name in EXEC_TOOLS),
    Row("GET", f"{CHAT}/calls/none", CALLERS, 404),
    Row("DELETE", f"{CHAT}/calls/none", CALLERS),
    Row("POST", f"{CHAT}/build/cancel", CALLERS, body={}),
    Row("POST", f"{CHAT}/keep", CALLERS, body={"seconds": 60}),
    Row("DELETE", f"{CHAT}/workspace", SERVICES, 202),
    Row("GET", CHAT, EVERYBODY),
    Row("GET", f"{CHAT}/events", SERVICES),
    Row("GET", f"{CHAT}/builds/{new_id()}/log", EVERYBODY),
    Row("GET", "/v1/stream?chat={chat}", EVERYBODY),
    Row("GET", "/v1/chats", SERVICES, of_chat=False),
    Row("GET", f"/v1/templates?organization_id={ORGANIZATION}", CALLERS, of_chat=False),
    Row(
        "GET",
        f"/v1/templates/{new_id()}?organization_id={ORGANIZATION}",
        CALLERS,
        404,
        of_chat=False,
    ),
    Row("GET", "/v1/stream", OPERATOR, of_chat=False),
    Row("GET", "/v1/status", OPERATOR, of_chat=False),
    Row("GET", "/v1/calls", OPERATOR, of_chat=False),
    Row("GET", "/v1/builds/times", OPERATOR, of_chat=False),
    Row("GET", "/v1/dead", OPERATOR, of_chat=False),
    Row("GET", f"/v1/dead/{10**15}", OPERATOR, 404, of_chat=False),
)
WITHOUT_TOKEN = ("/openapi.json", "/healthz", "/readyz")
UNKNOWN = ("/v1", "/v1/chats/{chat}/tools", "/v1/chats/{chat}/keep/", "/v2/chats", "/v1/tokens")


@dataclass(frozen=True)
class Holder:
    """A token, and what it was issued with."""

    name: str
    role: str
    client: HttpClient
    exec: bool = True
    own_chat: bool = True
    """Whether it is for the chat of the requests, if it is for some chats only."""


@pytest.fixture
async def bare(world: World) -> AsyncIterator[HttpClient]:
    """A client without a token."""
    assert world.deployment.up is not None
    async with http_client(world.deployment.up.http) as client:
        yield client


async def holders(world: World, bare: HttpClient, chat: Chat) -> list[Holder]:
    other = await world.chat()
    owned, foreign = [{"chat_ids": [one.id], **one.identity} for one in (chat, other)]

    async def holder(name: str, role: str, body: dict[str, Any], *, own: bool = True) -> Holder:
        issued = await world.operator.rpc("issue_token", role=role, **body)
        execs = body.get("exec", role != "frontend")
        return Holder(name, role, replace(bare, token=issued["token"]), execs, own)

    return [
        await holder("operator", "operator", {}),
        await holder("chat service", "chat-service", {}),
        await holder("chat service without exec", "chat-service", {"exec": False}),
        await holder("chat", "chat", owned),
        await holder("chat without exec", "chat", {**owned, "exec": False}),
        await holder("another chat", "chat", foreign, own=False),
        await holder("frontend", "frontend", {"chat_ids": [chat.id]}),
        await holder("frontend with exec", "frontend", {"chat_ids": [chat.id], "exec": True}),
        await holder("another frontend", "frontend", {"chat_ids": [other.id]}, own=False),
    ]


def expected(row: Row, holder: Holder | None) -> int:
    """Return the status of the route's own method. Without `holder` the token is not valid."""
    if holder is None:
        return 401
    if row.path == "/v1/stream" and holder.role in ("chat", "frontend"):
        return 200  # it is of the token's own chats
    foreign = row.of_chat and not holder.own_chat
    if holder.role not in row.roles or foreign or (row.exec and not holder.exec):
        return 403
    return row.status


async def status_of(client: HttpClient, method: str, path: str, body: object, owner: object) -> int:
    """Return the status of a request, whose body names the owner where it is needed."""
    if body is not None and "/tools/" in path:
        body = {**dict(body), **dict(owner)}  # type: ignore[call-overload]
    headers = {} if client.token is None else {"Authorization": f"Bearer {client.token}"}
    url = f"{client.url}{path}"
    async with client.session.request(method, url, json=body, headers=headers) as answer:
        assert answer.status != 401 or answer.headers["WWW-Authenticate"] == "Bearer"
        if answer.status >= 400:
            assert answer.headers["Content-Type"] == "application/problem+json", (method, path)
        return answer.status  # a stream is left after its headers


async def test_the_table_has_every_route_of_the_document(world: World, bare: HttpClient) -> None:
    issued = await world.operator.rpc("issue_token", role="operator")
    operator = replace(bare, token=issued["token"])
    _, document = await operator.ask("GET", "/openapi.json")

    def names(path: str) -> list[str]:
        return path.partition("?")[0].split("/")

    def stands_for(path: str, documented: str) -> bool:
        parts, wanted = names(path), names(documented)
        pairs = zip(parts, wanted, strict=False)
        return len(parts) == len(wanted) and all(w.startswith("{") or p == w for p, w in pairs)

    for documented, operations in document["paths"].items():
        tried = {row.method for row in TABLE if stands_for(row.path, documented)}
        described = {name.upper() for name in operations} & {*METHODS}
        assert described <= tried, (documented, described, tried)


async def test_what_needs_no_token_is_answered_and_what_is_no_route_is_not_found(
    bare: HttpClient,
) -> None:
    for path in WITHOUT_TOKEN:
        assert await status_of(bare, "GET", path, None, {}) == 200, path
    for path in UNKNOWN:
        assert await status_of(bare, "GET", path.format(chat=new_id()), None, {}) == 404, path
    headers = {"Origin": bare.url}
    for row in TABLE:
        url = f"{bare.url}{row.path.format(chat=new_id())}"
        async with bare.session.options(url, headers=headers) as preflight:
            assert preflight.status == 204, row.path
            assert row.method in preflight.headers["Access-Control-Allow-Methods"]


async def test_every_token_may_use_its_routes_with_their_methods_and_nothing_else(
    world: World, bare: HttpClient
) -> None:
    chat = await world.chat()
    tokens: list[Holder | None] = [*await holders(world, bare, chat), None]
    methods: dict[str, set[str]] = {}
    for row in TABLE:
        methods.setdefault(row.path, set()).add(row.method)
    wrong: list[object] = []
    few = asyncio.Semaphore(20)

    async def check(holder: Holder | None, method: str, row: Row) -> None:
        client = replace(bare, token="x" * 43) if holder is None else holder.client
        path = row.path.format(chat=chat.id)
        body = row.body if method == row.method else None
        used = "GET" if method == "HEAD" else method
        want = expected(row, holder) if used == row.method else 405
        async with few:
            status = await status_of(client, method, path, body, chat.identity)
        if holder is None and status == 429:
            return  # requests without a valid token are limited in number
        if status != want:
            wrong.append((holder and holder.name, method, path, f"{status}, not {want}"))

    for holder in tokens:
        async with asyncio.TaskGroup() as group:
            for row in TABLE:
                for method in METHODS:
                    used = "GET" if method == "HEAD" else method
                    if used == row.method or used not in methods[row.path]:
                        group.create_task(check(holder, method, row))

    assert not wrong, wrong
