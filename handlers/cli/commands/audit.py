"""Chats beside their logs: which of them agree, and snapshots made anew from the log.

A page of chats at a time, so that any number of them needs no more memory than a page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from statemachine.chat import Limits
from statemachine.messages import LogEntry
from statemachine.replay import Difference, Fold
from statemachine.snapshot_audit import differences, filled, read, without_hidden
from statemachine.store import Changes, chat_columns
from statemachine.store.postgres import PostgresStore
from statemachine.store.postgres_queries import ChatRow


@dataclass(slots=True)
class Audit:
    """A chat, and what its log folds to."""

    kept: ChatRow
    fold: Fold
    unreadable: list[Difference] = field(default_factory=list)
    """The first entry that can't be read: nothing behind it is folded."""

    @property
    def of_log(self) -> list[Difference]:
        """What the log itself says otherwise than it folds to."""
        return self.fold.differences + self.unreadable

    @property
    def of_snapshot(self) -> list[Difference]:
        """What is kept beside the log, and differs from what it folds to."""
        kept, fold = self.kept, self.fold
        found = differences(kept.snapshot, fold, kept.open_calls)
        folded = chat_columns(fold.workspace)
        return found + [
            Difference(None, f"column {name}", value, folded[name])
            for name, value in kept.columns.items()
            if value != folded[name]
        ]

    def take(self, entry: LogEntry) -> None:
        """Fold an entry, unless one before it could not be read or the look was before it."""
        seq = entry["seq"]
        if self.unreadable or seq > self.kept.last:
            return
        try:
            self.fold.take(entry)
        except ValueError as bad:
            self.unreadable.append(Difference(None, f"entry {seq}", str(bad), "an event"))


async def audits(
    store: PostgresStore, limits: Limits, only: Sequence[str] | None = None
) -> AsyncIterator[list[Audit]]:
    """Yield all chats, or those named, a page at a time, each with its log folded.

    `limits` stand in where a log does not say which were in force.
    """
    after: str | None = None
    while page := await store.audit.chat_rows(after=after, only=only):
        after = page[-1].chat_id
        found = {kept.chat_id: Audit(kept, Fold(kept.chat_id, limits)) for kept in page}
        async for chat_id, entry in store.audit.logs(page[0].chat_id, after):
            if (audit := found.get(chat_id)) is not None:  # else it came after the look
                audit.take(entry)
        yield list(found.values())


async def rebuild(store: PostgresStore, wrong: Sequence[Audit]) -> dict[str, list[str]]:
    """Write anew the snapshots of chats whose log folds; return what could not be restored of each.

    In one transaction that holds the chats; what the log got since it was folded is folded first.
    """
    folds = {audit.kept.chat_id: audit.fold for audit in wrong}
    lost: dict[str, list[str]] = {}
    async with store.transaction() as tx:
        await tx.lock_damaged(folds.keys())
        changes = Changes()
        for kept in await tx.audit.chat_rows(only=list(folds), limit=len(folds)):
            fold = folds[kept.chat_id]
            async for _, entry in tx.audit.logs(
                kept.chat_id, kept.chat_id, after=fold.workspace.seq
            ):
                fold.take(entry)
            if not fold.differences:
                chat = filled(fold, read(kept.snapshot), kept.open_calls)
                chat, lost[kept.chat_id] = without_hidden(chat)
                changes.chats.append(chat)
        await tx.write(changes)
    return lost
