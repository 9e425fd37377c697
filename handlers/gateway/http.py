"""The gateway's HTTP interface, for clients without NATS: JSON, and Server-Sent Events.

Each route is a line of `ROUTES`. Most call the responder of an rpc with a body that is made of the path, the
query and the request's body, so both interfaces give the same answers. docs/contract.md, section 10, is the
specification.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar
from uuid import uuid4

from aiohttp import web
from aiohttp.web_request import BaseRequest

from bus import Bus, BusError, Message, Responder, ServiceError, subjects
from bus.streams import RESULT
from handlers.gateway import openapi
from handlers.gateway.http_admission import Admission, Ending, Problem, admitted_origin, ended
from handlers.gateway.http_page import Page
from handlers.gateway.http_stream import EventStream
from handlers.gateway.queries import Queries
from handlers.gateway.replies import naming_ignored
from handlers.gateway.requests import ChatBody, ToolBody, parse_body
from handlers.gateway.tool_calls import ToolCalls
from handlers.runtime.health import Trust
from handlers.runtime.site import Site
from handlers.runtime.supervise import running
from handlers.shared_settings import allowlist
from statemachine.calls import Answered, Call, Known, Policy
from statemachine.chat import Chat
from statemachine.exec_tools import EXEC_TOOLS
from statemachine.lookups import lookups
from statemachine.naming import is_uuid
from statemachine.store import Store, StoreUnavailableError, Token
from statemachine.strict_json import Reject, parse
from statemachine.tool_rules import TOOLS, evaluate

log = logging.getLogger(__name__)

MAX_BODY: Final = 512 * 1024
"""Bytes of a request's body."""
_DISCARDED: Final = 16 * 1024 * 1024
"""Bytes that are read of a body that is too large, so that its sender gets the answer."""
DEFAULT_WAIT: Final = 30.0
MAX_WAIT: Final = 300.0
"""Seconds for which a request waits for the answer of a call."""
MAX_CHATS: Final = 100
"""Chats that one stream follows."""
_NOBODY: Final = "00000000-0000-0000-0000-000000000000"
_TOKEN_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_QUERY_INTEGERS: Final = frozenset(("after", "page", "before"))
_EVERYBODY: Final = frozenset(("operator", "chat-service", "chat", "frontend"))
_CALLERS: Final = frozenset(("operator", "chat-service", "chat"))
_OPERATORS: Final = frozenset(("operator",))
_SERVICES: Final = frozenset(("operator", "chat-service"))

Result = TypeVar("Result")
Handler = Callable[[BaseRequest, Trust], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was admitted."""

    request: BaseRequest
    token: Token
    """The rights of its sender."""
    end: asyncio.Future[Ending]
    """Gets the reason when a stream or wait of the request has to end."""
    path: Mapping[str, str]
    """The variable parts of the path."""
    body: dict[str, Any]
    """The body, an empty object if there is none."""

    @property
    def query(self) -> dict[str, str]:
        """The query's fields; of one that is given twice the last value."""
        return dict(self.request.query)

    @property
    def message(self) -> Message:
        """The request as a message for the responder of an rpc; its sender is the token."""
        trace = self.request.headers.get("traceparent")
        headers = {"traceparent": trace} if trace else {}
        return Message(self.request.path, b"", headers, f"_HTTP_{self.token.id}.reply")


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path, the roles that may use it, and the name of the method of `HttpApi` that answers."""

    method: str
    path: str
    answer: str
    roles: frozenset[str]
    summary: str

    def match(self, path: str) -> Mapping[str, str] | None:
        """Return the variable parts of a path; None if the path is another one."""
        parts, wanted = path.split("/"), self.path.split("/")
        if len(parts) != len(wanted):
            return None
        found: dict[str, str] = {}
        for part, want in zip(parts, wanted, strict=True):
            if want.startswith("{"):
                found[want[1:-1]] = part
            elif part != want:
                return None
        return found


_CHAT: Final = "/v1/chats/{chat_id}"
ROUTES: Final = (
    Route("POST", f"{_CHAT}/tools/{{tool}}", "call_tool", _CALLERS, "Call a tool"),
    Route("GET", f"{_CHAT}/calls/{{call_id}}", "get_call", _CALLERS, "Read a call's answer"),
    Route("DELETE", f"{_CHAT}/calls/{{call_id}}", "cancel_call", _CALLERS, "Cancel a call"),
    Route("POST", f"{_CHAT}/build/cancel", "cancel_build", _CALLERS, "Cancel the running build"),
    Route("POST", f"{_CHAT}/keep", "keep", _CALLERS, "Put off the end of the lifetime"),
    Route("DELETE", f"{_CHAT}/workspace", "delete_workspace", _SERVICES, "Delete the workspace"),
    Route("GET", "/v1/chats", "list_chats", _SERVICES, "List chats"),
    Route("GET", _CHAT, "get_chat", _EVERYBODY, "Read a chat's state"),
    Route("GET", f"{_CHAT}/events", "read_events", _SERVICES, "Read a chat's event log"),
    Route("GET", f"{_CHAT}/builds/{{build_id}}/log", "read_log", _EVERYBODY, "Read a build's log"),
    Route("GET", "/v1/templates", "list_templates", _CALLERS, "List templates"),
    Route("GET", "/v1/templates/{template_id}", "read_template", _CALLERS, "Read a template"),
    Route("GET", "/v1/status", "status", _OPERATORS, "Read what runs, waits and is wrong"),
    Route("GET", "/v1/calls", "list_calls", _OPERATORS, "List the calls that wait"),
    Route("GET", "/v1/builds/times", "build_times", _OPERATORS, "Read how long builds took"),
    Route("GET", "/v1/dead", "list_dead", _OPERATORS, "List dead letters"),
    Route("GET", "/v1/dead/{sequence}", "read_dead", _OPERATORS, "Read a dead letter"),
    Route("GET", "/v1/stream", "stream", _EVERYBODY, "Follow chats as Server-Sent Events"),
)


@dataclass(slots=True)
class HttpApi:
    """Answers HTTP requests."""

    store: Store
    bus: Bus
    site: Site
    endpoints: Mapping[str, Responder]
    """The responders of the rpcs, by name."""
    calls: ToolCalls
    queries: Queries
    admission: Admission = field(init=False)
    page: Page = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.store, self.bus)
        self.page = Page(self.store, self.bus, self.admission)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Handler]:
        """Yield the handler of requests. When the block ends, streams and waits end."""
        async with running(self.admission.run()):
            try:
                yield self.handle
            finally:
                self.admission.leave()

    async def handle(self, request: BaseRequest, trust: Trust) -> web.StreamResponse:
        """Answer a request."""
        origin: str | None = None
        try:
            origin = admitted_origin(self.site, request)
            if request.method == "OPTIONS":
                return _with_cors(
                    web.Response(status=HTTPStatus.NO_CONTENT), origin, preflight=True
                )
            if self.page.answers(request.path):
                return await self.page.answer(request, trust)
            if request.path == openapi.PATH:
                return _with_cors(_json(openapi.document(ROUTES)), origin)
            return _with_cors(await self._answer(request, trust, origin), origin)
        except Problem as problem:
            found = problem
        except ServiceError as error:
            found = Problem(_status(error.code), error.description)
        except StoreUnavailableError as error:
            found = Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, f"the database is unavailable; try again: {error}"
            )
        except BusError as error:
            found = Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, f"NATS is unavailable; try again: {error}"
            )
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            found = Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR, "an error of the gateway; its log has the details"
            )
        return _with_cors(_problem(found), origin)

    async def _answer(
        self, request: BaseRequest, trust: Trust, origin: str | None
    ) -> web.StreamResponse:
        try:
            bearer = await self.admission.bearer_of(request)
        except Problem:
            _route_of(request)  # anybody is told that a path or method does not exist
            raise
        trust(request)
        route, path = _route_of(request)
        _check_rights(route, path, bearer.token)
        with self.admission.admitted(bearer) as end:
            asked = Asked(request, bearer.token, end, path, await _read_body(request))
            if route.answer == "stream":
                return await self._stream(asked, origin)
            status, answer = await getattr(self, route.answer)(asked)
            return _json(answer, status)

    async def _held(self, asked: Asked, work: Awaitable[Result]) -> Result:
        """Wait for `work`, unless the token ends or the gateway leaves. Raises Problem 401 and 503."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, asked.end), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ended(asked.end.result())
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _rpc(self, name: str, asked: Asked, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply of an rpc to a body. Raises ServiceError."""
        message = asked.message
        data = json.dumps(body).encode()
        request = Message(subjects.rpc(name), data, message.headers, message.reply)
        return json.loads(await self.endpoints[name](request))  # type: ignore[no-any-return]

    # -- tools and calls ---------------------------------------------------------------------------

    async def call_tool(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Call a tool of the chat, and wait some time for its answer."""
        tool, body = asked.path["tool"], asked.body | {"chat_id": asked.path["chat_id"]}
        wait = _seconds(body.pop("wait_seconds", None), DEFAULT_WAIT)
        _fill_in_owner(body, asked.token, needed=tool in TOOLS)
        if tool in EXEC_TOOLS:
            if not asked.token.exec:
                raise Problem(
                    HTTPStatus.FORBIDDEN, "this token was issued without the right to run commands"
                )
            return HTTPStatus.OK, await self._held(asked, self._rpc(tool, asked, body))
        if tool not in TOOLS:
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no tool {tool!r}")
        if not body.get("call_id"):
            body["call_id"] = uuid4().hex
        parsed, ignored = parse_body(ToolBody, json.dumps(body).encode())
        stored = asyncio.Event()
        call = asyncio.ensure_future(self.calls.call(tool, parsed, asked.message, stored.set))
        work = self._answer_or_accept(asked, call, stored, parsed.call_id or "", wait)
        status, answer = await self._held(asked, work)
        return status, naming_ignored(answer, ignored)

    async def _answer_or_accept(
        self,
        asked: Asked,
        call: asyncio.Future[Mapping[str, object]],
        stored: asyncio.Event,
        call_id: str,
        wait: float,
    ) -> tuple[HTTPStatus, Mapping[str, object]]:
        """Return the answer of a call that is being asked, or say that it is stored."""
        accepted = asyncio.ensure_future(stored.wait())
        try:
            done, _ = await asyncio.wait((call,), timeout=wait)
            if not done:  # it is an error, or stored, before the request is accepted
                await asyncio.wait((call, accepted), return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return HTTPStatus.OK, call.result()
            return await self._accepted(asked.path["chat_id"], call_id)
        finally:
            for task in (call, accepted):
                task.cancel()
            await asyncio.gather(call, accepted, return_exceptions=True)

    async def _accepted(
        self, chat_id: str, call_id: str
    ) -> tuple[HTTPStatus, Mapping[str, object]]:
        chat = await self.queries.get_chat(ChatBody(chat_id=chat_id))
        found = {"call_id": call_id, "state": chat["state"], "deadline": chat["deadline"]}
        return HTTPStatus.ACCEPTED, found

    async def get_call(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return the answer of a call, or say that it is open."""
        chat_id, call_id = asked.path["chat_id"], _call_id(asked.path["call_id"])
        wait = _seconds(asked.query.get("wait_seconds"), 0.0)
        subject = subjects.result(chat_id, call_id)

        async def answer() -> tuple[HTTPStatus, object]:
            async with self.bus.subscribe(subject) as results:
                if (found := await self._stored_answer(subject)) is not None:
                    return HTTPStatus.OK, found
                try:
                    async with asyncio.timeout(wait):
                        while (message := await results.next_or_reconnect()) is None:
                            if (found := await self._stored_answer(subject)) is not None:
                                return HTTPStatus.OK, found
                        return HTTPStatus.OK, json.loads(message.data)["data"]
                except TimeoutError:
                    pass
            waiting = await self.store.chats.open_calls(chat_id)
            if any(call.call_id == call_id for call in waiting):
                return await self._accepted(chat_id, call_id)
            raise Problem(
                HTTPStatus.NOT_FOUND,
                f"chat {chat_id} has no call {call_id}, or it was answered more than 24 h ago: ask again "
                "by POST with the same call_id",
            )

        return await self._held(asked, answer())

    async def _stored_answer(self, subject: str) -> object | None:
        last = await self.bus.get_last(RESULT.name, subject)
        return None if last is None else json.loads(last.data)["data"]

    async def cancel_call(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Cancel a call of the chat."""
        call_id = _call_id(asked.path["call_id"])
        body = {"chat_id": asked.path["chat_id"], "call_id": call_id}
        return HTTPStatus.OK, await self._rpc("cancel", asked, body)

    async def cancel_build(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Cancel the chat's build."""
        body = asked.body | {"chat_id": asked.path["chat_id"]}
        return HTTPStatus.OK, await self._rpc("cancel_build", asked, body)

    async def keep(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Put off the end of the workspace's lifetime."""
        body = asked.body | {"chat_id": asked.path["chat_id"]}
        return HTTPStatus.OK, await self._rpc("keep", asked, body)

    async def delete_workspace(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Request a delete build of the chat's workspace."""
        chat_id = asked.path["chat_id"]
        before = await self.queries.get_chat(ChatBody(chat_id=chat_id))
        await self.calls.request_delete(chat_id, asked.message)
        return HTTPStatus.ACCEPTED, {"state": before["state"]}

    # -- reads -------------------------------------------------------------------------------------

    async def list_chats(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a page of chats."""
        return HTTPStatus.OK, await self._rpc("list_chats", asked, _flags(asked.query))

    async def get_chat(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a chat's state and its open calls."""
        return HTTPStatus.OK, await self._rpc(
            "get_chat", asked, {**_flags(asked.query), **asked.path}
        )

    async def read_events(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a page of a chat's event log."""
        return HTTPStatus.OK, await self._rpc("read_events", asked, _page_body(asked))

    async def read_log(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a page of a build's log."""
        _id("build_id", asked.path["build_id"])
        return HTTPStatus.OK, await self._rpc("read_log", asked, _page_body(asked))

    async def status(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return what runs, what waits, and what is wrong."""
        return HTTPStatus.OK, await self._rpc("status", asked, {})

    async def list_calls(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a page of the calls that wait."""
        return HTTPStatus.OK, await self._rpc("list_calls", asked, asked.query)

    async def build_times(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return how long builds took."""
        return HTTPStatus.OK, await self._rpc("build_times", asked, _numbers(asked.query))

    async def list_dead(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a page of dead letters."""
        return HTTPStatus.OK, await self._rpc("list_dead", asked, _numbers(asked.query))

    async def read_dead(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a dead letter."""
        sequence = asked.path["sequence"]
        if not re.fullmatch(r"[0-9]{1,18}", sequence):
            raise Problem(HTTPStatus.BAD_REQUEST, f"sequence: {sequence!r} is not a number")
        return HTTPStatus.OK, await self._rpc("read_dead", asked, {"sequence": int(sequence)})

    async def list_templates(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a page of the templates of an organization."""
        given = _numbers(asked.query)
        args: dict[str, Any] = {name: given[name] for name in ("query", "page") if name in given}
        return HTTPStatus.OK, (await self._look_up("list_templates", args, asked)).result

    async def read_template(self, asked: Asked) -> tuple[HTTPStatus, object]:
        """Return a template of an organization."""
        template_id = _id("template_id", asked.path["template_id"])
        answer = await self._look_up("read_template", {"template_id": template_id}, asked)
        if answer.is_error:
            raise Problem(HTTPStatus.NOT_FOUND, str(answer.result["error"]))  # type: ignore[typeddict-item]
        return HTTPStatus.OK, answer.result

    async def _look_up(self, tool: str, args: dict[str, Any], asked: Asked) -> Answered:
        """Evaluate a tool that only reads templates, without a chat."""
        organization = asked.query.get("organization_id") or asked.token.organization_id
        if not organization:
            raise Problem(HTTPStatus.BAD_REQUEST, "organization_id is required: a lower-case UUID")
        _id("organization_id", organization)
        _check_own("organization_id", organization, asked.token.organization_id)
        call = Call(
            chat_id=_NOBODY,
            call_id="read",
            tool=tool,
            args=args,
            organization_id=organization,
            owner_id=_NOBODY,
            owner_name="",
            asked_at=datetime.now(UTC),
            order=0,
        )
        chat = Chat(chat_id=_NOBODY, organization_id=organization, owner_id=_NOBODY)
        found = await self.store.look_up(lookups([call], [], []))
        known = Known(found.catalog, Policy(allowlist=allowlist(found.settings)), seed=b"read")
        answer = evaluate(call, chat, known)
        if not isinstance(answer, Answered):
            raise TypeError(f"{tool} waits")
        if answer.is_error and tool == "list_templates":
            raise Problem(HTTPStatus.BAD_REQUEST, str(answer.result["error"]))  # type: ignore[typeddict-item]
        return answer

    # -- streams -----------------------------------------------------------------------------------

    async def _stream(self, asked: Asked, origin: str | None) -> web.StreamResponse:
        chats = tuple(dict.fromkeys(asked.request.query.getall("chat", [])))
        for chat_id in chats:
            _id("chat", chat_id)
            _check_chat(chat_id, asked.token)
        chats = chats or asked.token.chat_ids
        if len(chats) > MAX_CHATS:
            raise Problem(HTTPStatus.BAD_REQUEST, f"a stream follows at most {MAX_CHATS} chats")
        if not chats and asked.token.role != "operator":
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "only an operator's token permits the stream of all chats: name some, ?chat=<chat id>",
            )
        presence = _flag(asked.query, "presence")
        if presence and asked.token.role != "operator":
            raise Problem(HTTPStatus.FORBIDDEN, "only an operator's token permits presence=true")
        stream = EventStream(
            self.bus,
            chats,
            exec_events=asked.token.exec,
            last_id=asked.request.headers.get("Last-Event-ID", ""),
            presence=presence,
        )
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        if asked.request.method == "HEAD":  # it has no body, so there is nothing to follow
            return web.Response(headers=headers)
        response = web.StreamResponse(headers=headers)
        _with_cors(response, origin)
        await stream.serve(asked.request, response, asked.end)
        return response


# -- checks ---------------------------------------------------------------------------------------


def _route_of(request: BaseRequest) -> tuple[Route, Mapping[str, str]]:
    """Return the route of a request and the variable parts of its path. Raises Problem 404 and 405."""
    method = "GET" if request.method == "HEAD" else request.method
    found = [(route, path) for route in ROUTES if (path := route.match(request.path)) is not None]
    for route, path in found:
        if route.method == method:
            return route, path
    if not found:
        raise Problem(
            HTTPStatus.NOT_FOUND, f"there is no route {request.path}; {openapi.PATH} lists them"
        )
    allow = ", ".join(sorted({route.method for route, _ in found}))
    raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} takes {allow}", {"Allow": allow})


def _check_rights(route: Route, path: Mapping[str, str], token: Token) -> None:
    """Raise Problem 403 if the token does not permit the route, 400 if the chat's id is none."""
    if token.role not in route.roles:
        raise Problem(HTTPStatus.FORBIDDEN, f"a token of role {token.role} does not permit this")
    if (chat_id := path.get("chat_id")) is not None:
        _id("chat_id", chat_id)
        _check_chat(chat_id, token)


def _check_chat(chat_id: str, token: Token) -> None:
    if token.chat_ids and chat_id not in token.chat_ids:
        raise Problem(HTTPStatus.FORBIDDEN, f"this token is not for chat {chat_id}")


def _fill_in_owner(body: dict[str, Any], token: Token, *, needed: bool) -> None:
    """Add organization and owner of a `chat` token to a call. Raises Problem 403 if it names others."""
    for name in ("organization_id", "owner_id"):
        if (own := getattr(token, name)) is not None and body.get(name):
            _check_own(name, str(body[name]), own)
    if needed and token.organization_id is not None:
        body |= {
            name: getattr(token, name) for name in ("organization_id", "owner_id", "owner_name")
        }


def _check_own(name: str, given: str, own: str | None) -> None:
    if own is not None and given != own:
        raise Problem(HTTPStatus.FORBIDDEN, f"{name}: this token is for {own}")


def _id(name: str, text: str) -> str:
    """Return an id. Raises Problem 400 if the text is none."""
    if not is_uuid(text) or text != text.lower() or text != text.strip():
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name}: {text!r} is not a lower-case UUID")
    return text


def _call_id(text: str) -> str:
    if not _TOKEN_TEXT.fullmatch(text):
        raise Problem(
            HTTPStatus.BAD_REQUEST, f"call_id: {text!r} is not 1 to 128 of A-Z, a-z, 0-9, _ and -"
        )
    return text


def _seconds(given: object, default: float) -> float:
    """Return how long to wait. Raises Problem 400."""
    if given is None or given == "":
        return default
    return min(_number("wait_seconds", given), MAX_WAIT)


def _number(name: str, given: object) -> float:
    """Return a number of seconds. Raises Problem 400."""
    seconds = -1.0
    if isinstance(given, str | int | float) and not isinstance(given, bool):
        with suppress(ValueError, OverflowError):
            seconds = float(given)
    if not seconds >= 0:
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name}: {given!r} is not a number from 0")
    return seconds


def _numbers(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a query that are not empty, numbers as numbers. Raises Problem 400."""
    found: dict[str, Any] = {name: text for name, text in query.items() if text}
    if "seconds" in found:
        found["seconds"] = _number("seconds", found["seconds"])
    for name in _QUERY_INTEGERS & found.keys():
        if not re.fullmatch(r"-?[0-9]{1,19}", found[name]):
            text = f"{name}: {found[name]!r} is not an integer of at most 19 digits"
            raise Problem(HTTPStatus.BAD_REQUEST, text)
        found[name] = int(found[name])
    return found


def _flags(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a query, flags as booleans. Raises Problem 400."""
    return {**query, "details": _flag(query, "details")}


def _flag(query: Mapping[str, str], name: str) -> bool:
    """Return a field of a query that is true or false, false if it is absent. Raises Problem 400."""
    if (given := query.get(name, "")) not in ("", "true", "false"):
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name}: {given!r} is neither true nor false")
    return given == "true"


def _page_body(asked: Asked) -> dict[str, Any]:
    return {**_numbers(asked.query), **asked.path}


async def _received(request: BaseRequest) -> bytes:
    """Return the bytes of a body. Raises Problem 400 and 413."""
    data = bytearray()
    total = 0
    try:
        async for chunk in request.content.iter_any():
            total += len(chunk)
            if total <= MAX_BODY:
                data += chunk
            elif total > _DISCARDED:
                break
    except web.RequestPayloadError as error:
        why = " ".join(str(error).split())
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body can't be read: {why}") from None
    if total > MAX_BODY:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {MAX_BODY} bytes"
        )
    return bytes(data)


async def _read_body(request: BaseRequest) -> dict[str, Any]:
    """Return the body of a request. Raises Problem 400, 413 and 415."""
    data = await _received(request)
    if not data:
        return {}
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is {kind}; send application/json"
        )
    try:
        body = parse(data)
    except Reject as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"body: {error.detail}") from None
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise Problem(HTTPStatus.BAD_REQUEST, "body: a JSON object is required")
    return body


# -- answers --------------------------------------------------------------------------------------


def _status(code: int) -> HTTPStatus:
    try:
        return HTTPStatus(code)
    except ValueError:
        return HTTPStatus.BAD_GATEWAY


def _problem(problem: Problem) -> web.Response:
    body = {
        "status": int(problem.status),
        "title": problem.status.phrase,
        "detail": problem.detail,
    }
    return _json(body, problem.status, "application/problem+json", problem.headers)


def _json(
    value: object,
    status: HTTPStatus = HTTPStatus.OK,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return web.Response(
        body=body,
        status=status,
        content_type=content_type,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def _with_cors(
    response: web.StreamResponse, origin: str | None, *, preflight: bool = False
) -> web.StreamResponse:
    """Let the page of an allowed origin read the response."""
    if response.prepared or origin is None:
        return response
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Vary"] = "Origin"
    if preflight:
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
        response.headers["Access-Control-Allow-Headers"] = (
            "Authorization, Content-Type, Last-Event-ID, traceparent"
        )
        response.headers["Access-Control-Max-Age"] = "600"
    return response
