"""The gateway: the micro service `workspaced`, and who agents and frontends are."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import Final, TypeVar

from bus import Bus, BusError, Message, Responder, ServiceError, subjects
from handlers.access.auth_callout import Door
from handlers.gateway import requests
from handlers.gateway.concurrency_limit import Turns
from handlers.gateway.credentials import Credentials
from handlers.gateway.queries import Reader
from handlers.gateway.tool_calls import Asking
from statemachine.events import Frozen
from statemachine.store import Store, StoreUnavailableError
from statemachine.tool_rules import TOOLS

log = logging.getLogger(__name__)
SERVICE: Final = "workspaced"
Body = TypeVar("Body", bound=Frozen)


@dataclass(slots=True)
class Gateway:
    """Answers rpcs, with any number of others doing the same."""

    store: Store
    bus: Bus
    orphan_grace: timedelta
    """How long the workers let a workspace run that no chat has, to tell operators."""
    issuer_seed: str | None = None
    """Signs for agents and frontends; without it another gateway must."""
    held_calls: int = 10_000
    """How many rpcs it holds at once."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve until cancelled."""
        asking = Asking(self.bus, self.store, self.held_calls)
        reader = Reader(self.store, self.bus, self.orphan_grace)
        credentials = Credentials(self.store, self.bus)
        self.bus.on_reconnect(asking.reconnected)
        endpoints: dict[str, Responder] = {
            tool: _raw(requests.ToolBody, partial(asking.tool, tool)) for tool in TOOLS
        }
        turns = Turns()
        quick: dict[str, Responder] = {
            "cancel": _json(requests.CancelBody, asking.cancel),
            "get_chat": _json(requests.ChatBody, reader.get_chat),
            "list_chats": _json(requests.ChatsBody, reader.list_chats),
            "list_orphans": _json(requests.OrphansBody, reader.list_orphans),
            "read_log": _json(requests.LogBody, reader.read_log),
            "read_events": _json(requests.EventsBody, reader.read_events),
            "template_archive": _raw(requests.ArchiveBody, _archive(reader)),
            "agent_credential": _json_to(requests.AgentCredentialBody, credentials.agent),
            "frontend_credential": _json(requests.FrontendCredentialBody, credentials.frontend),
            "issue_credential": _json(requests.IssueBody, credentials.issue),
            "list_credentials": _json(requests.CredentialsBody, credentials.listed),
            "revoke_credential": _json(requests.RevokeBody, credentials.revoke),
        }
        endpoints |= {name: turns.limited(responder) for name, responder in quick.items()}
        if self.issuer_seed is not None:
            await Door(self.store, self.bus, self.issuer_seed).open()
        await self.bus.serve(
            SERVICE,
            version("workspaced"),
            "Development workspaces for AI chats",
            {subjects.rpc(name): responder for name, responder in endpoints.items()},
        )
        self.ready.set()
        log.info("gateway is ready")
        await asyncio.get_running_loop().create_future()


def _json(
    model: type[Body], answer: Callable[[Body], Awaitable[Mapping[str, object]]]
) -> Responder:
    return _json_to(model, lambda body, _message: answer(body))


def _json_to(
    model: type[Body], answer: Callable[[Body, Message], Awaitable[Mapping[str, object]]]
) -> Responder:
    async def text(body: Body, message: Message) -> bytes:
        found = await answer(body, message)
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()

    return _raw(model, text)


def _archive(reader: Reader) -> Callable[[requests.ArchiveBody, Message], Awaitable[bytes]]:
    return lambda body, _message: reader.template_archive(body)


def _raw(model: type[Body], answer: Callable[[Body, Message], Awaitable[bytes]]) -> Responder:
    async def respond(message: Message) -> bytes:
        body = requests.read(model, message.data)
        try:
            return await answer(body, message)
        except StoreUnavailableError as bad:
            raise ServiceError(503, f"the database is away; ask again: {bad}") from bad
        except BusError as bad:
            if isinstance(bad, ServiceError):
                raise
            raise ServiceError(503, f"the bus is away; ask again: {bad}") from bad

    return respond
