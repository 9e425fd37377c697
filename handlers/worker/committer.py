"""Commits batches of events, and decides what happens to events that the database does not accept.

An event becomes a dead letter only if it fails alone, by its data or by a bug of ours, while the database
accepts a sample event. Everything else is the database's fault:

- If the database accepts no changes at all, the batch is tried again without a limit.
- If it accepts other events, those that it refuses are postponed: they are redelivered later.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from bus import Backoff, Delivery
from handlers.runtime import clock
from handlers.worker.batch import Applied
from handlers.worker.deliveries import Dead, Item, chat_of, dead, repeated
from handlers.worker.publications import Publication
from statemachine.store import (
    Store,
    StoreUnavailableError,
    TransientError,
    WorkRefusedError,
)
from statemachine.strict_json import RejectReason

log = logging.getLogger(__name__)

NOTICE_SECONDS: Final = 15.0
"""Seconds after which a chat's notice, or a reported problem, expires unless it is renewed by a retry."""
LONGEST_DELAY: Final = 2.0
"""Seconds between two tries at most, so that the work goes on soon after the database recovers."""
TRANSIENT_RETRIES: Final = 3
"""The number of single-event transactions that a batch repeats after locks and timeouts before it postpones."""
Server = Literal["database", "nats"]
Read = tuple[Delivery, Item]
CONFLICT_RETRIES: Final = 100
"""How often a batch may be applied again because chats changed meanwhile, before it postpones their events."""
Apply = Callable[[Sequence[Item]], Awaitable[Applied]]
"""Applies events, and commits all of them or none, except those of chats that change meanwhile."""


class Problems:
    """The present problems that prevent a worker from working, by server. `/readyz` reports them."""

    def __init__(self) -> None:
        self._found: dict[tuple[Server, str], tuple[str, float]] = {}

    def report(
        self, server: Server, message: str, *, about: str = "", seconds: float = math.inf
    ) -> None:
        """Report a problem with a server, or with one thing on it, until it is cleared or the time is up."""
        self._found[server, about] = message, clock() + seconds

    def clear(self, server: Server, about: str = "") -> None:
        """Report that the problem is over."""
        self._found.pop((server, about), None)

    def of(self, server: Server) -> str | None:
        """Return the problems with a server, at most three; None if there are none."""
        now = clock()
        self._found = {name: found for name, found in self._found.items() if found[1] > now}
        messages = {text for (of, _), (text, _) in self._found.items() if of == server}
        return "; ".join(sorted(messages)[:3]) or None


@dataclass(slots=True)
class CommitResult:
    """The deliveries of a batch, by what happened to them."""

    deliveries: list[Delivery] = field(default_factory=list)
    """Those that are in the database, or become dead letters: to be acked after publishing."""
    messages: list[Publication] = field(default_factory=list)
    """The messages to publish."""
    repeated: set[str] = field(default_factory=set)
    """Chats of which something may be committed and not published: see `Applied`."""
    failed: list[Delivery] = field(default_factory=list)
    """Those of `deliveries` that become dead letters."""
    buried: list[Dead] = field(default_factory=list)
    """The dead letters."""
    postponed: list[Delivery] = field(default_factory=list)
    """Those that the database does not accept now: to be nak'd."""

    def add(self, group: Sequence[Read], applied: Applied) -> None:
        """Add a group that is in the database, with what must be published for it."""
        self.deliveries += [delivery for delivery, _ in group]
        self.messages += applied.messages
        self.repeated |= applied.repeated
        self.buried += [item for _, item in group if isinstance(item, Dead)]
        self.failed += [delivery for delivery, item in group if isinstance(item, Dead)]


@dataclass(slots=True)
class _Batch:
    """The part of a batch that is not committed yet."""

    groups: deque[Sequence[Read]]
    """Each is one transaction. The first one is next."""
    result: CommitResult = field(default_factory=CommitResult)
    backoff: Backoff = field(default_factory=lambda: Backoff(limit=LONGEST_DELAY))
    writable: bool = False
    """Whether the database was seen to accept changes."""
    transient_retries: int = 0
    conflicts: int = 0
    """How often chats had changed after they were read."""
    noted: set[str] = field(default_factory=set)
    """Chats whose notice says already that one of their events is postponed."""

    def chats(self) -> set[str]:
        """Return the chats that still have events in the batch."""
        items = (item for group in self.groups for _, item in group)
        return {chat_id for item in items if (chat_id := chat_of(item)) is not None}


class Committer:
    """Commits the batches of one worker."""

    def __init__(self, store: Store, problems: Problems) -> None:
        self._store, self._problems = store, problems
        self._noted: set[str] = set()
        """Chats that have a notice from this worker."""

    async def commit(self, items: Sequence[Read], apply: Apply) -> CommitResult:
        """Apply a batch, in one statement if possible.

        Returns when each event is committed, postponed or a dead letter; while the database accepts no changes,
        it does not return. Raises nothing that `apply` raises.
        """
        batch = _Batch(deque([items]))
        while batch.groups:
            group = batch.groups[0]
            try:
                applied = await apply([item for _, item in group])
            except Exception as error:  # noqa: BLE001 — whatever it is, others in the batch go on
                # The database may have committed it, and only its answer was lost.
                group = [(delivery, repeated(item)) for delivery, item in group]
                batch.groups[0] = group
                fault = await self._find_database_fault(batch, group, error)
                if fault is not None:
                    answers = type(error) is not StoreUnavailableError
                    await self._report_unavailable(batch, fault, answers=answers)
                    await batch.backoff.wait()
                elif not await self._repeat_transient(batch, group, error):
                    batch.groups.popleft()
                    await self._give_up(batch, group, error)
            else:
                batch.groups.popleft()
                again, done = list[Read](), group
                if applied.again:
                    again = [read for read in group if chat_of(read[1]) in applied.again]
                    done = [read for read in group if chat_of(read[1]) not in applied.again]
                batch.result.add(done, applied)
                await self._report_success(done)
                if again:
                    await self._apply_again(batch, again)
        if postponed := batch.result.postponed:
            message = "the database refuses %d of %d events, which are redelivered later: %s"
            log.warning(message, len(postponed), len(items), self._problems.of("database"))
        return batch.result

    async def _find_database_fault(
        self, batch: _Batch, group: Sequence[Read], error: Exception
    ) -> StoreUnavailableError | None:
        """Return the fault of a database that accepts no changes at all; None if it accepts some.

        A single event that fails by its data may be the first of many: a constraint or a trigger that somebody
        added may reject every event with the same error. So the database has to accept a sample event before
        any event becomes a dead letter.
        """
        match error:
            case WorkRefusedError() if batch.writable:
                return None
            case WorkRefusedError():
                batch.writable = await self._fault_of(self._store.check_writable) is None
                return None if batch.writable else error
            case TransientError():
                return await self._fault_of(self._store.check_writable)  # somebody may lock a table
            case StoreUnavailableError():
                batch.writable = False
                return error
            case _ if len(group) > 1 or isinstance(group[0][1], Dead):
                return None
            case _:
                return await self._fault_of(self._store.probe_write)

    async def _apply_again(self, batch: _Batch, again: Sequence[Read]) -> None:
        """Apply the events of chats that changed after they were read: first of all, and not without end."""
        batch.conflicts += 1
        if batch.conflicts <= CONFLICT_RETRIES:
            batch.groups.appendleft(again)
            return
        for delivery, item in again:
            error = TransientError("others change the row of its chat whenever it is applied")
            await self._postpone(delivery, item, error, batch)

    async def _fault_of(self, check: Callable[[], Awaitable[None]]) -> StoreUnavailableError | None:
        try:
            await check()
        except StoreUnavailableError as fault:
            return fault
        return None

    async def _repeat_transient(
        self, batch: _Batch, group: Sequence[Read], error: Exception
    ) -> bool:
        """Return whether to repeat the transaction of a single event, after a back-off."""
        if (
            not isinstance(error, TransientError)
            or len(group) > 1
            or batch.transient_retries == TRANSIENT_RETRIES
        ):
            return False
        batch.transient_retries += 1
        log.warning("a transaction did not commit, trying again: %s", error)
        await batch.backoff.wait()
        return True

    async def _give_up(self, batch: _Batch, group: Sequence[Read], error: Exception) -> None:
        """Halve a group that failed; postpone a single event, or make it a dead letter."""
        if len(group) > 1:
            log.info("a batch of %d failed, halving it: %s", len(group), error)
            half = len(group) // 2
            batch.groups.extendleft((group[half:], group[:half]))
            return
        ((delivery, item),) = group
        if isinstance(error, StoreUnavailableError):
            await self._postpone(delivery, item, error, batch)
        elif isinstance(item, Dead):
            batch.result.add(group, Applied())
        else:
            log.error(
                "an event fails alone and becomes a dead letter: %s",
                delivery.subject,
                exc_info=error,
            )
            # The error's text stays in our log: it may hold values that others must not read.
            detail = f"internal error: {type(error).__name__}"
            batch.groups.appendleft(
                [(delivery, dead(delivery, RejectReason.INTERNAL, detail, item))]
            )

    async def _report_unavailable(
        self, batch: _Batch, fault: StoreUnavailableError, *, answers: bool
    ) -> None:
        """Report the fault; if the database `answers`, the chats' notices show it too."""
        message = f"the database does not take events: {fault}"
        log.warning("the database accepts no changes, trying again: %s", fault)
        self._problems.report("database", message)
        if answers:
            await self._note_blocked(batch.chats(), message)

    async def _postpone(
        self, delivery: Delivery, item: Item, error: Exception, batch: _Batch
    ) -> None:
        batch.result.postponed.append(delivery)
        self._problems.report(
            "database",
            f"the database does not take an event: {error}",
            about=_position(delivery),
            seconds=NOTICE_SECONDS,
        )
        chat_id = chat_of(item)
        if chat_id is not None and chat_id not in batch.noted:
            batch.noted.add(chat_id)
            await self._note_blocked(
                {chat_id},
                f"the database does not take an event of this chat, it is tried again: {error}",
            )

    async def _note_blocked(self, chat_ids: AbstractSet[str], reason: str) -> None:
        with suppress(StoreUnavailableError):
            await self._store.note_blocked(chat_ids, reason, NOTICE_SECONDS)
            self._noted |= chat_ids

    async def _report_success(self, group: Sequence[Read]) -> None:
        if self._problems.of("database") is not None:
            self._problems.clear("database")
            for delivery, _ in group:
                self._problems.clear("database", _position(delivery))
        if not self._noted:
            return
        if over := self._noted & {chat_of(item) or "" for _, item in group}:
            self._noted -= over
            with suppress(StoreUnavailableError):
                await self._store.note_blocked(over, "", 0)


def _position(delivery: Delivery) -> str:
    return f"{delivery.stream}:{delivery.sequence}"
