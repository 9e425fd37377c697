"""The rpcs that only read: chats, orphans, logs, events, template archives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, TypeVar, cast

from pydantic_core import to_json

from bus import Bus, Message, ServiceError, subjects
from bus.streams import LOG
from handlers.access.issued_keys import may_read_log
from handlers.gateway.replies import (
    ChatsPage,
    ChatWithCalls,
    EventsPage,
    LinesPage,
    OpenCall,
    Orphan,
    OrphansPage,
    ShownChat,
)
from handlers.gateway.requests import (
    ArchiveBody,
    ChatBody,
    ChatsBody,
    EventsBody,
    LogBody,
    OrphansBody,
)
from handlers.publishing.build_log import read_log_line
from statemachine.chat import Chat
from statemachine.codec import timestamp
from statemachine.events import Transition
from statemachine.messages import LogLine
from statemachine.states import STATE_INFO
from statemachine.store import Store
from statemachine.views import notice, state_changed
from statemachine.workspace import WorkspaceRecord

PAGE: Final = 100
"""The most chats, events or log messages on a page."""
CHUNK: Final = 256 * 1024
"""The most bytes of an archive in a reply."""
PAGE_BYTES: Final = 512 * 1024
"""A page ends with the entry that makes it this large. The last entry may be as large as NATS allows
an event to be, so a page always fits into a message."""

Shown = TypeVar("Shown")


@dataclass(frozen=True, slots=True)
class Queries:
    """Answers from the store and from the stream of build logs."""

    store: Store
    bus: Bus

    async def get_chat(self, body: ChatBody) -> ChatWithCalls:
        """Return a chat's state and its open calls."""
        chat = await self.store.chats.get(body.chat_id)
        held_up = await self.store.blocked({body.chat_id})
        if chat is None:
            return _with_calls(
                _shown(Chat(chat_id=body.chat_id), held_up, details=body.details), []
            )
        waiting = await self.store.chats.open_calls(body.chat_id) if chat.open_calls else []
        calls: list[OpenCall] = [
            {"call_id": call.call_id, "tool": call.tool, "asked_at": timestamp(call.asked_at)}
            for call in waiting
        ]
        return _with_calls(_shown(chat, held_up, details=body.details), calls)

    async def list_chats(self, body: ChatsBody) -> ChatsPage:
        """Return a page of chats. Raises ServiceError 400 for an unknown state."""
        states = None
        if body.state is not None:
            states = [str(state) for state, about in STATE_INFO.items() if about.wire == body.state]
            if not states:
                known = ", ".join(sorted({about.wire for about in STATE_INFO.values()}))
                raise ServiceError(400, f"body.state: {body.state!r} is not one of: {known}")
        chats = await self.store.chats.find(
            organization_id=body.organization_id,
            owner_id=body.owner_id,
            states=states,
            after=body.cursor,
            limit=PAGE + 1,
            template_id=body.template_id,
            query=body.query,
        )
        held_up = await self.store.blocked({chat.chat_id for chat in chats})
        shown = _one_page(_shown(chat, held_up, details=body.details) for chat in chats)
        page: ChatsPage = {"chats": shown}
        if len(shown) < len(chats):
            page["next"] = chats[len(shown) - 1].chat_id
        return page

    async def list_orphans(self, body: OrphansBody) -> OrphansPage:
        """Return a page of the workspaces that exist, or may exist, and belong to no chat."""
        chats = await self.store.chats.with_previous(after=body.cursor, limit=PAGE + 1)
        found = {c.chat_id: [r for r in c.previous if not r.deleted] for c in chats[:PAGE]}
        had = await self.store.chats.current_workspaces(
            {record.id for some in found.values() for record in some}
        )
        by_chat = _one_page(
            [_orphan(chat, record) for record in found[chat.chat_id] if record.id not in had]
            for chat in chats[:PAGE]
        )
        page: OrphansPage = {"workspaces": [orphan for orphans in by_chat for orphan in orphans]}
        if len(by_chat) < len(chats):
            page["next"] = chats[len(by_chat) - 1].chat_id
        return page

    async def read_log(self, body: LogBody, message: Message) -> LinesPage:
        """Return a page of a build's log messages, in the order in which they were stored.

        Raises ServiceError 403 if a frontend asks for a chat that its key does not name.
        """
        if not await may_read_log(self.store, message.reply, message.headers, body.chat_id):
            raise ServiceError(403, f"this key does not cover chat {body.chat_id}")
        subject, after = subjects.log(body.chat_id, body.build_id), body.after or 0
        lines: list[LogLine] = []
        space = PAGE_BYTES
        while len(lines) < PAGE and space > 0:
            found = await self.bus.get_next(LOG.name, subject, after)
            if found is None:
                return {"lines": lines}
            after = found.sequence
            space -= len(found.data)
            if (line := read_log_line(found.data, body.build_id)) is not None:
                lines.append(cast(LogLine, line))
        return {"lines": lines, "next": after}

    async def read_events(self, body: EventsBody) -> EventsPage:
        """Return a page of a chat's event log."""
        found = await self.store.chats.log(body.chat_id, after=body.after or 0, limit=PAGE + 1)
        events = _one_page(found)
        if len(events) < len(found):
            return {"events": events, "next": events[-1]["seq"]}
        return {"events": events}

    async def template_archive(self, body: ArchiveBody) -> bytes:
        """Return a part of a template version's tar.gz, empty after its end. Raises ServiceError 404."""
        chunk = await self.store.templates.read_archive(body.version_id, body.offset, CHUNK)
        if chunk is None:
            raise ServiceError(404, f"there is no template version {body.version_id}")
        return chunk


def _one_page(entries: Iterable[Shown]) -> list[Shown]:
    """Return the first entries: at most `PAGE`, ending with the one that makes them `PAGE_BYTES` large."""
    page: list[Shown] = []
    space = PAGE_BYTES
    for entry in islice(entries, PAGE):
        page.append(entry)
        space -= len(to_json(entry))
        if space <= 0:
            break
    return page


def _orphan(chat: Chat, record: WorkspaceRecord) -> Orphan:
    """Return a workspace as `list_orphans` shows it."""
    build = record.build
    since = record.orphaned_at or (build and (build.ended_at or build.started_at))
    return {
        "id": record.id,
        "name": record.name,
        "owner_name": record.owner_name or (chat.owner_name if record.ours else None),
        "chat_id": chat.chat_id,
        "pool": build.template.pool if build and build.template else None,
        "state": _state_of(record),
        "since": None if since is None else timestamp(since),
        "build_id": build.id if build else None,
        "build_number": build.number if build else None,
    }


def _state_of(
    record: WorkspaceRecord,
) -> Literal["building", "running", "stopping", "stopped", "failed"]:
    """Return what the newest build of a workspace has left."""
    build, starts = record.build, record.build and record.build.transition is Transition.START
    if build is None:
        return "failed"
    if build.outcome is None:
        return "building" if starts else "stopping"
    if build.transition is Transition.DELETE:
        return "failed"
    if build.leaves_running:
        return "running"
    return "failed" if starts else "stopped"


def _with_calls(shown: ShownChat, calls: list[OpenCall]) -> ChatWithCalls:
    with_calls = cast(ChatWithCalls, shown)
    with_calls["open_calls"] = calls
    return with_calls


def _shown(chat: Chat, held_up: Mapping[str, str], *, details: bool) -> ShownChat:
    """Return a chat as state_changed shows it, with a notice if something blocks the chat."""
    shown = cast(ShownChat, state_changed(chat))
    if details:
        build = chat.current and (chat.current.start_build or chat.build)
        shown["details"] = {
            "changed_at": None if chat.changed_at is None else timestamp(chat.changed_at),
            "template_name": build.template.name if build and build.template else None,
            "organization_id": chat.organization_id,
            "owner_id": chat.owner_id,
            "owner_name": chat.owner_name,
        }
    text = held_up.get(chat.chat_id) or notice(chat)
    if text is not None:
        shown["notice"] = text
    return shown
