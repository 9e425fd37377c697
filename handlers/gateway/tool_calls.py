"""Tool calls by rpc: the gateway publishes the request and holds the rpc until the result arrives."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from bus import Bus, BusError, Message, Refused, ServiceError, subjects
from handlers.gateway.replies import CanceledBuild, CanceledCall, naming_ignored
from handlers.gateway.requests import CancelBody, CancelBuildBody, ToolBody
from handlers.publishing import new_event, publish_once
from statemachine.arguments import content_digest, unknown_arguments
from statemachine.codec import MAX_SIZE, is_traceparent
from statemachine.store import Store, StoreUnavailableError
from statemachine.tool_rules import BUSY

log = logging.getLogger(__name__)

SERVICE: Final = "gateway"
"""The name of the chat service in the requests that the gateway publishes."""
MAX_WAIT: Final = 25 * 60.0
"""Seconds that the gateway holds an rpc."""


@dataclass(slots=True)
class ToolCalls:
    """Publishes tool requests for callers of rpcs, and returns the results to them."""

    bus: Bus
    store: Store
    limit: int = 10_000
    """Calls that are held at the same time."""
    _held: int = 0

    async def call(
        self,
        tool: str,
        body: ToolBody,
        message: Message,
        stored: Callable[[], None] = lambda: None,
    ) -> Mapping[str, object]:
        """Publish a tool request, wait for its result, and return the `data` of tool_resolved.

        `stored` is called when NATS has stored the request.
        Raises ServiceError 409 if the call is known and has other content, 413 if the request is too
        large, 429 if there are too many calls, 400 if NATS refuses the request, 504 if the result did not
        arrive in time, and 503 if NATS is unavailable.
        """
        if self._held >= self.limit:
            text = f"{BUSY}this gateway holds {self._held} calls already; try again later"
            raise ServiceError(429, text)
        self._held += 1
        try:
            if body.call_id is not None:
                await self._check_content(tool, body, body.call_id)
            return _reply(await self._result(tool, body, message, stored), tool, body.args)
        finally:
            self._held -= 1

    async def _check_content(self, tool: str, body: ToolBody, call_id: str) -> None:
        """Raise ServiceError 409 if the call is stored and has other content than `body`."""
        try:
            known = await self.store.chats.known_call(body.chat_id, call_id)
        except StoreUnavailableError as error:
            # Workers compare again, and mark the answer: a call may be asked while the database is away.
            log.info("call %s can't be compared with earlier ones now: %s", call_id, error)
            return
        if known is None or known.digest is None:
            return
        digest = content_digest(known.key, body.chat_id, call_id, tool, body.args)
        if digest != known.digest:
            raise ServiceError(
                409,
                f"call_id {call_id} was used for another call of this chat, with another tool or other "
                "args; give each call its own call_id",
            )

    async def _result(
        self, tool: str, body: ToolBody, message: Message, stored: Callable[[], None]
    ) -> dict[str, Any]:
        traceparent = _traceparent(message.headers)
        call_id = body.call_id or uuid4().hex
        data = {
            "call_id": call_id,
            "tool": tool,
            "args": body.args,
            "organization_id": body.organization_id,
            "owner_id": body.owner_id,
            "owner_name": body.owner_name,
        }
        try:
            async with (
                asyncio.timeout(MAX_WAIT),
                self.bus.subscribe(subjects.result(body.chat_id, call_id)) as results,
            ):
                while True:
                    await self._publish("tool_requested", body.chat_id, data, traceparent)
                    stored()
                    # After a reconnect publish again: the result may have been missed.
                    if (resolved := await results.next_or_reconnect()) is not None:
                        return json.loads(resolved.data)["data"]  # type: ignore[no-any-return]
        except TimeoutError:
            raise ServiceError(
                504, f"call {call_id} has no result yet; try again with the same call_id"
            ) from None
        except ServiceError:
            raise
        except Refused as error:
            raise ServiceError(400, str(error)) from error
        except BusError as error:
            raise ServiceError(
                503, f"NATS is unavailable; try again with call_id {call_id}: {error}"
            ) from error

    async def cancel(self, body: CancelBody) -> CanceledCall:
        """Cancel a call, unless it has its result already. Raises ServiceError 503."""
        try:
            answered = await self.store.chats.is_answered(body.chat_id, body.call_id)
            if not answered:
                await self._publish("tool_canceled", body.chat_id, {"call_id": body.call_id})
        except (BusError, StoreUnavailableError) as error:
            raise ServiceError(503, f"the call was not canceled; try again: {error}") from error
        return {"canceled": not answered}

    async def cancel_build(self, body: CancelBuildBody) -> CanceledBuild:
        """Cancel the build of a chat, if it is in flight. Raises ServiceError 503."""
        try:
            chat = await self.store.chats.get(body.chat_id)
            build = chat.build_in_flight if chat is not None else None
            if build is None or body.build_id not in (None, build.id):
                return {"canceled": False}
            data = {"build_id": build.id, **({"reason": body.reason} if body.reason else {})}
            await self._publish("build_cancel_requested", body.chat_id, data)
        except (BusError, StoreUnavailableError) as error:
            raise ServiceError(503, f"the build was not canceled; try again: {error}") from error
        return {"canceled": True, "build_id": build.id}

    async def request_delete(self, chat_id: str, message: Message) -> None:
        """Request a delete build of the chat's workspace. Raises BusError."""
        await self._publish("delete_requested", chat_id, {}, _traceparent(message.headers))

    async def _publish(
        self, type_name: str, chat_id: str, data: dict[str, Any], traceparent: str | None = None
    ) -> None:
        event = new_event("tool", SERVICE, chat_id, type_name, data, traceparent=traceparent)
        if len(event.body) > MAX_SIZE:
            raise ServiceError(
                413,
                f"the request is an event of {len(event.body)} bytes; at most {MAX_SIZE} are accepted",
            )
        await publish_once(self.bus, event)


def _reply(data: dict[str, Any], tool: str, args: dict[str, Any]) -> Mapping[str, object]:
    """Return a result for the caller. Raises ServiceError 429 if a worker refused the call for load."""
    error = data["result"].get("error") if data["is_error"] else None
    if error is not None and error.startswith(BUSY):
        raise ServiceError(429, error)
    # The result names the unknown arguments of the first request; this one may have others.
    return naming_ignored(data, unknown_arguments(tool, args))


def _traceparent(headers: Mapping[str, str]) -> str | None:
    """Return the caller's `traceparent` header if it is valid."""
    value = next((value for name, value in headers.items() if name.lower() == "traceparent"), "")
    return value if is_traceparent(value) else None
