"""The rpc `keep`: a caller puts the end of a workspace's lifetime off."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from bus import Bus, ServiceError, subjects
from handlers.gateway.replies import KeptWorkspace
from handlers.gateway.requests import KeepBody
from handlers.gateway.tool_calls import SERVICE
from handlers.publishing import new_event, publish_once
from statemachine.chat import Chat
from statemachine.codec import timestamp
from statemachine.lifetimes import end_of_keep, kept
from statemachine.store import Store

MAX_WAIT: Final = 8.0
"""Seconds that the gateway waits for a worker."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """Asks workers to keep workspaces, and tells callers until when."""

    store: Store
    bus: Bus

    async def keep(self, body: KeepBody) -> KeptWorkspace:
        """Keep the chat's workspace; return when it is stopped. Raises ServiceError 503, BusError."""
        async with self.bus.subscribe(subjects.ui_state(body.chat_id)) as states:
            chat, now = await self._chat(body.chat_id), await self.store.now()
            if kept(chat, body.seconds, now) is None:  # nothing changes
                return _reply(chat.stops_at)
            event = new_event(
                "tool", SERVICE, body.chat_id, "keep_requested", {"seconds": body.seconds}
            )
            await publish_once(self.bus, event)
            try:
                async with asyncio.timeout(MAX_WAIT):
                    while (message := await states.next_or_reconnect()) is not None:
                        found = _end_in(message.data, chat, end_of_keep(body.seconds, now))
                        if found is not None:
                            return found
            except TimeoutError:
                raise ServiceError(
                    503,
                    "no worker has taken the request yet; it is stored, and takes effect when one does",
                ) from None
        return _reply((await self._chat(body.chat_id)).stops_at)

    async def _chat(self, chat_id: str) -> Chat:
        return await self.store.chats.get(chat_id) or Chat(chat_id=chat_id)


def _end_in(message: bytes, before: Chat, wanted: datetime) -> KeptWorkspace | None:
    """Return the reply that follows from a published state; None if the request has not taken effect in it."""
    state: dict[str, Any] = json.loads(message)["data"]
    if state["version"] <= before.version:
        return None
    ends = state["stops_at"]
    if ends is None or datetime.fromisoformat(ends) >= wanted:
        return {"stops_at": ends}
    return None


def _reply(stops_at: datetime | None) -> KeptWorkspace:
    return {"stops_at": None if stops_at is None else timestamp(stops_at)}
