"""The gateway's service: the micro service `workspaced` with one endpoint for each rpc.

It also runs the auth callout. Any number of gateways can run at the same time.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Final, TypeVar

from bus import Bus, BusError, Message, Responder, ServiceError, subjects
from handlers.access.auth_callout import AuthCallout
from handlers.access.issued_keys import caller
from handlers.gateway import requests
from handlers.gateway.credentials import CredentialRpcs
from handlers.gateway.exec_calls import ExecCalls
from handlers.gateway.http import Handler, HttpApi
from handlers.gateway.keeping import Keeping
from handlers.gateway.operations import Operations
from handlers.gateway.queries import Queries
from handlers.gateway.replies import naming_ignored
from handlers.gateway.tokens import TokenRpcs
from handlers.gateway.tool_calls import ToolCalls
from handlers.runtime.site import Site
from statemachine.events import Frozen
from statemachine.exec_tools import EXEC_TOOLS
from statemachine.store import Store, StoreUnavailableError
from statemachine.tool_rules import BUSY, TOOLS

log = logging.getLogger(__name__)
MAX_PER_CALLER: Final = 1_000
"""Rpcs of one caller that are answered at the same time. Tool calls have a limit of their own."""
Body = TypeVar("Body", bound=Frozen)
Reply = TypeVar("Reply")


@dataclass(slots=True)
class Gateway:
    """Answers rpcs, and auth callout requests if it has the issuer's seed."""

    store: Store
    bus: Bus
    issuer_seed: str | None = None
    """Signs the answers to auth callout requests; None: another gateway has to answer them."""
    held_calls: int = 10_000
    """The number of tool calls that it may hold at the same time."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    site: Site = field(default_factory=Site)
    """The names under which its HTTP interface is reached."""
    page: str | None = None
    """The URL at which browsers reach its page; None if it serves none."""
    _calls: ToolCalls = field(init=False)
    _queries: Queries = field(init=False)

    def __post_init__(self) -> None:
        self._calls = ToolCalls(self.bus, self.store, self.held_calls)
        self._queries = Queries(self.store, self.bus)

    async def run(self) -> None:
        """Serve until cancelled. Raises BusError if the service can't be started."""
        if self.issuer_seed is not None:
            await AuthCallout(self.store, self.bus, self.issuer_seed).start()
        await self.bus.serve(
            subjects.GATEWAY_SERVICE,
            version("workspaced"),
            "Development workspaces for AI chats",
            {subjects.rpc(name): responder for name, responder in self._endpoints().items()},
        )
        self.ready.set()
        log.info("gateway is ready")
        await asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def http(self) -> AsyncIterator[Handler]:
        """Yield the handler of HTTP requests; streams and waits end when the block ends."""
        api = HttpApi(
            self.store, self.bus, self.site, self._endpoints(), self._calls, self._queries
        )
        async with api.serving() as handler:
            yield handler

    def _endpoints(self) -> dict[str, Responder]:
        calls, queries = self._calls, self._queries
        credentials = CredentialRpcs(self.store, self.bus)
        tokens = TokenRpcs(self.store, self.bus, self.page)
        operations = Operations(self.store, self.bus)
        tools: dict[str, Responder] = {
            tool: _json_of_caller(requests.ToolBody, partial(calls.call, tool)) for tool in TOOLS
        }
        others: dict[str, Responder] = {
            "cancel": _json(requests.CancelBody, calls.cancel),
            "keep": _json(requests.KeepBody, Keeping(self.store, self.bus).keep),
            "cancel_build": _json(requests.CancelBuildBody, calls.cancel_build),
            "get_chat": _json(requests.ChatBody, queries.get_chat),
            "list_chats": _json(requests.ChatsBody, queries.list_chats),
            "list_orphans": _json(requests.OrphansBody, queries.list_orphans),
            "read_log": _json_of_caller(requests.LogBody, queries.read_log),
            "read_events": _json(requests.EventsBody, queries.read_events),
            "status": _json(requests.StatusBody, operations.status),
            "list_calls": _json(requests.CallsBody, operations.list_calls),
            "build_times": _json(requests.BuildTimesBody, operations.build_times),
            "list_dead": _json(requests.DeadLettersBody, operations.list_dead),
            "read_dead": _json(requests.DeadLetterBody, operations.read_dead),
            "template_archive": _responder(
                requests.ArchiveBody,
                lambda body, _message: queries.template_archive(body),
                lambda archive, _ignored: archive,  # bytes have no place for ignored keys
            ),
            "agent_credential": _json_of_caller(
                requests.AgentCredentialBody, credentials.agent_credential
            ),
            "frontend_credential": _json_of_caller(
                requests.FrontendCredentialBody, credentials.frontend_credential
            ),
            "issue_credential": _json(requests.IssueBody, credentials.issue_credential),
            "list_credentials": _json(requests.CredentialsBody, credentials.list_credentials),
            "revoke_credential": _json(requests.RevokeBody, credentials.revoke_credential),
            "issue_token": _json_of_caller(requests.IssueTokenBody, tokens.issue_token),
            "issue_page_code": _json_of_caller(requests.IssuePageCodeBody, tokens.issue_page_code),
            "list_tokens": _json_of_caller(requests.TokensBody, tokens.list_tokens),
            "revoke_token": _json_of_caller(requests.RevokeTokenBody, tokens.revoke_token),
            "check_token": _json_of_caller(requests.CheckTokenBody, tokens.check_token),
        }
        commands = ExecCalls(self.bus, self.store)
        others |= {
            tool: _json_of_caller(requests.ExecBody, partial(commands.call, tool))
            for tool in EXEC_TOOLS
        }
        limit = CallerLimit()
        return tools | {name: limit.apply(responder) for name, responder in others.items()}


class CallerLimit:
    """Limits how many rpcs of one caller are answered at once, so that a flood does not block others."""

    def __init__(self, limit: int = MAX_PER_CALLER) -> None:
        self._limit = limit
        self._running: Counter[str] = Counter()

    def apply(self, responder: Responder) -> Responder:
        """Return a responder that raises ServiceError 429 when the caller has reached the limit."""

        async def respond(message: Message) -> bytes:
            asking = caller(message.reply, message.headers)
            if self._running[asking] >= self._limit:
                text = f"{BUSY}{self._limit} rpcs of yours are being answered; try again later"
                raise ServiceError(429, text)
            self._running[asking] += 1
            try:
                return await responder(message)
            finally:
                self._running[asking] -= 1
                if not self._running[asking]:
                    del self._running[asking]

        return respond


def _json(
    model: type[Body], answer: Callable[[Body], Awaitable[Mapping[str, object]]]
) -> Responder:
    return _json_of_caller(model, lambda body, _message: answer(body))


def _json_of_caller(
    model: type[Body], answer: Callable[[Body, Message], Awaitable[Mapping[str, object]]]
) -> Responder:
    return _responder(model, answer, _encoded)


def _encoded(reply: Mapping[str, object], ignored: list[str]) -> bytes:
    """Encode a reply that names the ignored keys of the request's body, if there are any."""
    shown = naming_ignored(reply, ignored)
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


def _responder(
    model: type[Body],
    answer: Callable[[Body, Message], Awaitable[Reply]],
    encode: Callable[[Reply, list[str]], bytes],
) -> Responder:
    """Return a responder that parses the body and turns outages into ServiceError 503.

    `encode` gets the reply and the names of the body's unknown keys.
    """

    async def respond(message: Message) -> bytes:
        body, ignored = requests.parse_body(model, message.data)
        try:
            return encode(await answer(body, message), ignored)
        except StoreUnavailableError as error:
            raise ServiceError(503, f"the database is unavailable; try again: {error}") from error
        except ServiceError:
            raise
        except BusError as error:
            raise ServiceError(503, f"NATS is unavailable; try again: {error}") from error

    return respond
