"""What operators and chat services read: chats, logs, events, template archives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from bus import Bus, ServiceError, subjects
from bus.streams import LOG
from handlers.gateway.bodies import ArchiveBody, ChatBody, ChatsBody, EventsBody, LogBody
from statemachine.codec import timestamp
from statemachine.states import ABOUT
from statemachine.store import Store
from statemachine.views import state_changed
from statemachine.workspace import Workspace

PAGE: Final = 100
"""Chats, events or log messages a page."""
PIECE: Final = 256 * 1024
"""Bytes of an archive at once."""
ROOM: Final = 512 * 1024
"""Bytes after which a page is full: with one more entry of the largest size it still is a message."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Answers from the store and the log stream; changes nothing."""

    store: Store
    bus: Bus

    async def get_chat(self, body: ChatBody) -> dict[str, Any]:
        """Return a chat's state and the calls that wait for it."""
        chat = await self.store.chat(body.chat_id)
        if chat is None:
            return state_changed(Workspace(chat_id=body.chat_id)) | {"open_calls": []}
        waiting = await self.store.waiting(body.chat_id) if chat.open_calls else []
        calls = [
            {"call_id": call.call_id, "tool": call.tool, "asked_at": timestamp(call.asked_at)}
            for call in waiting
        ]
        return state_changed(chat) | {"open_calls": calls}

    async def list_chats(self, body: ChatsBody) -> dict[str, Any]:
        """Return a page of chats."""
        states = None
        if body.state is not None:
            states = [str(state) for state, about in ABOUT.items() if about.wire == body.state]
            if not states:
                known = ", ".join(sorted({about.wire for about in ABOUT.values()}))
                raise ServiceError(400, f"body.state: {body.state!r} is none of: {known}")
        chats = await self.store.chats(
            organization_id=body.organization_id,
            owner_id=body.owner_id,
            states=states,
            after=body.cursor,
            most=PAGE + 1,
        )
        page: dict[str, Any] = {"chats": [state_changed(chat) for chat in chats[:PAGE]]}
        if len(chats) > PAGE:
            page["next"] = chats[PAGE - 1].chat_id
        return page

    async def read_log(self, body: LogBody) -> dict[str, Any]:
        """Return a page of a build's log messages, in the order they were stored."""
        subject, after = subjects.log(body.chat_id, body.build_id), body.after or 0
        lines: list[Any] = []
        room = ROOM
        while len(lines) < PAGE and room > 0:
            found = await self.bus.following(LOG.name, subject, after)
            if found is None:
                return {"lines": lines}
            after = found.sequence
            room -= len(found.data)
            try:
                lines.append(json.loads(found.data)["data"])
            except (ValueError, KeyError, TypeError):
                continue  # somebody wrote there what is no log line
        return {"lines": lines, "next": after}

    async def read_events(self, body: EventsBody) -> dict[str, Any]:
        """Return a page of a chat's event log."""
        found = await self.store.log(body.chat_id, after=body.after or 0, most=PAGE + 1)
        events: list[Any] = []
        room = ROOM
        for entry in found[:PAGE]:
            events.append(entry)
            room -= len(json.dumps(entry))
            if room <= 0:
                break
        if len(events) < len(found):
            return {"events": events, "next": events[-1]["seq"]}
        return {"events": events}

    async def template_archive(self, body: ArchiveBody) -> bytes:
        """Return a piece of a template version's tar.gz; empty at its end."""
        piece = await self.store.archive(body.version_id, body.offset, PIECE)
        if piece is None:
            raise ServiceError(404, f"there is no template version {body.version_id}")
        return piece
