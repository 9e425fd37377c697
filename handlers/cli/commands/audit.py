"""Compares the snapshots of chats with their event logs, and rebuilds snapshots from logs.

Works on one page of chats at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from statemachine.chat import Chat, Limits
from statemachine.messages import LogEntry
from statemachine.replay import Difference, Fold
from statemachine.snapshot_audit import differences, filled, read, without_hidden
from statemachine.store import chat_columns
from statemachine.store.postgres import PostgresStore
from statemachine.store.postgres_queries import ChatRow


@dataclass(slots=True)
class Audit:
    """A stored chat, and the result of folding its event log."""

    kept: ChatRow
    fold: Fold
    unreadable: list[Difference] = field(default_factory=list)
    """The first entry that cannot be read; later entries are not folded."""

    @property
    def of_log(self) -> list[Difference]:
        """Return the differences between what the log recorded and what it folds to."""
        return self.fold.differences + self.unreadable

    @property
    def of_snapshot(self) -> list[Difference]:
        """Return the differences between the stored row of the chat and what its log folds to."""
        kept, fold = self.kept, self.fold
        found = differences(kept.snapshot, fold, kept.open_calls)
        folded = chat_columns(fold.chat)
        return found + [
            Difference(None, f"column {name}", value, folded[name])
            for name, value in kept.columns.items()
            if value != folded[name]
        ]

    def take(self, entry: LogEntry) -> None:
        """Fold an entry, unless an earlier one cannot be read or it is newer than the stored row."""
        seq = entry["seq"]
        if self.unreadable or seq > self.kept.last:
            return
        try:
            self.fold.take(entry)
        except ValueError as error:
            self.unreadable.append(Difference(None, f"entry {seq}", str(error), "an event"))


async def audits(
    store: PostgresStore, limits: Limits, only: Sequence[str] | None = None
) -> AsyncIterator[list[Audit]]:
    """Yield pages of all chats, or of those in `only`, with their logs folded.

    `limits` are the time limits of states for entries that do not record which limits applied.
    """
    after: str | None = None
    while page := await store.audit.chat_rows(after=after, only=only):
        after = page[-1].chat_id
        found = {kept.chat_id: Audit(kept, Fold(kept.chat_id, limits)) for kept in page}
        async for chat_id, entry in store.audit.logs(page[0].chat_id, after):
            if (audit := found.get(chat_id)) is not None:  # None: the chat is newer than the page
                audit.take(entry)
        yield list(found.values())


async def rebuild(store: PostgresStore, wrong: Sequence[Audit]) -> dict[str, list[str]]:
    """Rewrite the snapshots of chats whose logs have no differences of their own.

    Returns, by chat, the names of sensitive values that could not be restored. Folds entries first that were
    logged since the audit. A chat that changes meanwhile is read again.
    """
    folds = {audit.kept.chat_id: audit.fold for audit in wrong}
    lost: dict[str, list[str]] = {}
    left = set(folds)
    while left:
        chats, row_versions, hidden = list[Chat](), dict[str, int](), dict[str, list[str]]()
        for kept in await store.audit.chat_rows(only=sorted(left), limit=len(left)):
            fold = folds[kept.chat_id]
            async for _, entry in store.audit.logs(kept.chat_id, kept.chat_id, after=fold.chat.seq):
                if entry["seq"] <= kept.last:
                    fold.take(entry)
            if not fold.differences:
                chat = filled(fold, read(kept.snapshot), kept.open_calls)
                chat, hidden[kept.chat_id] = without_hidden(chat)
                chats.append(chat)
                row_versions[kept.chat_id] = kept.row_version
        done = await store.audit.rebuild(chats, row_versions) if chats else set()
        lost |= {chat_id: hidden[chat_id] for chat_id in done}
        left = row_versions.keys() - done
    return lost
