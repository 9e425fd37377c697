"""A tool call by rpc: asked on the bus like any other, and held until its result comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from bus import CLOUDEVENT, Bus, BusError, Message, Refused, ServiceError, Subscription, subjects
from handlers.gateway.replies import Canceled
from handlers.gateway.requests import CancelBody, ToolBody
from statemachine.admission import BUSY
from statemachine.codec import encode, is_traceparent
from statemachine.store import Store, StoreUnavailableError

SERVICE: Final = "gateway"
"""The chat service that calls asked by rpc come from."""
LONGEST: Final = 25 * 60.0
"""Seconds that an rpc may be held."""


@dataclass(slots=True)
class Asking:
    """Asks on the bus in the name of rpc callers."""

    bus: Bus
    store: Store
    most: int = 10_000
    """Calls held at once."""
    _held: int = 0
    _reconnected: asyncio.Event = field(default_factory=asyncio.Event)

    def reconnected(self) -> None:
        """Have every held call asked again: its result may have passed unseen."""
        self._reconnected.set()
        self._reconnected = asyncio.Event()

    async def tool(self, tool: str, body: ToolBody, asked: Message) -> bytes:
        """Ask, wait, and return the `data` of tool_resolved. Raises ServiceError."""
        if self._held >= self.most:
            words = f"{BUSY}this gateway holds {self._held} calls already; try again later"
            raise ServiceError(429, words)
        self._held += 1
        try:
            return _reply(await self._resolved(tool, body, asked))
        finally:
            self._held -= 1

    async def _resolved(self, tool: str, body: ToolBody, asked: Message) -> dict[str, Any]:
        trace = _traceparent(asked.headers)
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
                asyncio.timeout(LONGEST),
                self.bus.subscribe(subjects.result(body.chat_id, call_id)) as results,
            ):
                while True:
                    again = self._reconnected
                    await self._publish("tool_requested", body.chat_id, data, trace)
                    if (answer := await _first(results, again)) is not None:
                        return dict(answer["data"])
        except TimeoutError:
            raise ServiceError(
                503, f"call {call_id} has no answer yet; ask again with the same call_id"
            ) from None
        except Refused as bad:
            raise ServiceError(400, str(bad)) from bad
        except BusError as bad:
            raise ServiceError(
                503, f"the bus is away; ask again with call_id {call_id}: {bad}"
            ) from bad

    async def cancel(self, body: CancelBody) -> Canceled:
        """End a call's wait; say whether there is, or may come, one to end."""
        try:
            over = await self.store.chats.is_answered(body.chat_id, body.call_id)
            if not over:
                await self._publish("tool_canceled", body.chat_id, {"call_id": body.call_id})
        except (BusError, StoreUnavailableError) as bad:
            raise ServiceError(503, f"not canceled, ask again: {bad}") from bad
        return {"canceled": not over}

    async def _publish(
        self, type_name: str, chat_id: str, data: dict[str, Any], traceparent: str | None = None
    ) -> None:
        source, event_id = f"/chat/{SERVICE}", str(uuid4())
        event = encode(
            type_name,
            source,
            chat_id,
            data,
            event_id=event_id,
            time=datetime.now(UTC),
            traceparent=traceparent,
        )
        await self.bus.publish(
            subjects.inbound("tool", chat_id, SERVICE),
            event,
            headers=CLOUDEVENT,
            message_id=f"{source}:{event_id}",
        )


def _reply(data: dict[str, Any]) -> bytes:
    """Return what the caller gets. Raises ServiceError when there was too much to do."""
    words = data["result"].get("error") if data["is_error"] else None
    if words is not None and words.startswith(BUSY):
        raise ServiceError(429, words)
    return json.dumps(data, ensure_ascii=False).encode()


def _traceparent(headers: Mapping[str, str]) -> str | None:
    """Return the caller's trace, if it has one that can be read."""
    found = next((value for name, value in headers.items() if name.lower() == "traceparent"), "")
    return found if is_traceparent(found) else None


async def _first(results: Subscription, again: asyncio.Event) -> dict[str, Any] | None:
    """Return the result, or None when the connection was lost meanwhile."""
    result, lost = asyncio.ensure_future(results.next()), asyncio.ensure_future(again.wait())
    try:
        await asyncio.wait((result, lost), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            return None
        return json.loads(result.result().data)  # type: ignore[no-any-return]
    finally:
        result.cancel()
        lost.cancel()
