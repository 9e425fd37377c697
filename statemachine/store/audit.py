"""Chats as they are kept beside their logs: what verifying and rebuilding snapshots looks at.

Of the database only: where nothing outlives the process there is nothing to audit.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from statemachine.chat import Chat
from statemachine.messages import LogEntry
from statemachine.store.entries import shown
from statemachine.timers import rests

_PAGE: Final = 250
"""Log entries at once."""
_FIRST: Final = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Kept:
    """A chat's row, as it was when the log ended with entry `last`."""

    chat_id: str
    snapshot: str
    """JSON; it may be damaged."""
    columns: Mapping[str, Any]
    """What the row repeats of the snapshot, to be found by."""
    last: int
    open_calls: int


class Auditing:
    """Reads of whoever can fetch: with a transaction, or without."""

    @abstractmethod
    async def _fetch(self, name: str, *args: object) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a statement."""

    async def kept(
        self, *, after: str | None = None, only: Sequence[str] | None = None, most: int = 200
    ) -> list[Kept]:
        """Return chats by id, after `after`."""
        rows = await self._fetch("kept", after, only, most)
        return [
            Kept(
                row["chat_id"],
                row["snapshot"],
                {name: row[name] for name in columns_of(Chat(chat_id=row["chat_id"]))},
                row["last"],
                row["open_calls"],
            )
            for row in rows
        ]

    async def logs(
        self, first: str | None = None, last: str | None = None, *, after: int = 0
    ) -> AsyncIterator[tuple[str, LogEntry]]:
        """Yield (chat id, entry) of the logs of the chats from `first` to `last`, chat by chat.

        `after`: leave out so many entries of the first chat.
        """
        place = (first or _FIRST, after)
        while True:
            rows = await self._fetch("log_of_many", *place, last, _PAGE)
            for row in rows:
                yield row["chat_id"], entry_in(row)
            if len(rows) < _PAGE:
                return
            place = (rows[-1]["chat_id"], rows[-1]["seq"])


def columns_of(chat: Chat) -> dict[str, Any]:
    """Return what a chat's row repeats of its snapshot."""
    return {
        "version": chat.version,
        "state": str(chat.state),
        "organization_id": chat.organization_id,
        "owner_id": chat.owner_id,
        "workspace_id": chat.ref.id if chat.ref else None,
        "wakes": not rests(chat),
    }


def entry_in(row: Mapping[str, Any]) -> LogEntry:
    """Return the entry that a row of the log holds."""
    cause = row["cause"]
    return shown(row, json.loads(row["event"]), None if cause is None else json.loads(cause))
