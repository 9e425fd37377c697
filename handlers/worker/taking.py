"""Taking a batch into the database, and what becomes of events that it does not take.

An event is buried only when it fails alone and by its data, or by a bug of ours. Whatever else goes wrong is the
database's own: then the batch is tried again without limit. Where the database takes other events, those that it
refuses are left behind, and come again.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from bus import Delivery
from bus.backoff import Backoff
from handlers.clock import clock
from handlers.worker.deliveries import Dead, Item, chat_of, dead
from statemachine.store import (
    OutboxMessage,
    Store,
    StoreUnavailableError,
    TransientError,
    WorkRefusedError,
)
from statemachine.strict_json import Reason

log = logging.getLogger(__name__)

SHOWN_FOR: Final = 15.0
"""Seconds that a chat's notice stays without being renewed; what is not taken is tried again sooner."""
SLOWEST: Final = 2.0
"""Seconds between two tries at most, so that the work goes on soon after the database can."""
RACES: Final = 3
"""How many transactions of single events a batch may lose before it leaves such events behind."""
Server = Literal["database", "nats"]
Read = tuple[Delivery, Item]
Apply = Callable[[Sequence[Item]], Awaitable[list[OutboxMessage]]]
"""Applies events in one transaction, and returns what must be published."""


class Troubles:
    """What keeps a worker from its work now, by server: its answer when somebody asks after its health."""

    def __init__(self) -> None:
        self._noted: dict[tuple[Server, str], tuple[str, float]] = {}

    def note(
        self, server: Server, words: str, *, what: str = "", seconds: float = math.inf
    ) -> None:
        """Note what is wrong with a server, or with `what` of it, until that is cleared or time is up."""
        self._noted[server, what] = words, clock() + seconds

    def clear(self, server: Server, what: str = "") -> None:
        """Note that all is well."""
        self._noted.pop((server, what), None)

    def of(self, server: Server) -> str | None:
        """Return what is wrong with a server, or None."""
        now = clock()
        self._noted = {name: noted for name, noted in self._noted.items() if noted[1] > now}
        found = {words for (of, _), (words, _) in self._noted.items() if of == server}
        return "; ".join(sorted(found)[:3]) or None


@dataclass(slots=True)
class Taken:
    """What became of a batch."""

    deliveries: list[Delivery] = field(default_factory=list)
    """Those that are in the database, or are to be buried."""
    rows: list[OutboxMessage] = field(default_factory=list)
    buried: list[Dead] = field(default_factory=list)
    left: list[Delivery] = field(default_factory=list)
    """Those that the database does not take now."""

    def note(self, group: Sequence[Read], rows: Iterable[OutboxMessage]) -> None:
        """Note that a group is in the database, with what must be published for it."""
        self.deliveries += [delivery for delivery, _ in group]
        self.rows += rows
        self.buried += [item for _, item in group if isinstance(item, Dead)]


@dataclass(slots=True)
class _Batch:
    """What is left to do of a batch."""

    groups: deque[Sequence[Read]]
    taken: Taken = field(default_factory=Taken)
    backoff: Backoff = field(default_factory=lambda: Backoff(limit=SLOWEST))
    works: bool = False
    """Whether the database was seen to take changes."""
    races: int = 0
    """How many transactions of single events lost a race or ran out of time."""
    shown: set[str] = field(default_factory=set)
    """Chats whose notice says already that one of their events is not taken."""


class Taking:
    """Applies batches for one worker."""

    def __init__(self, store: Store, troubles: Troubles) -> None:
        self._store, self._troubles = store, troubles
        self._shown: set[str] = set()
        """Chats that have a notice because of this worker."""

    async def take(self, items: Sequence[Read], apply: Apply) -> Taken:
        """Apply `items`, together if that is possible; return when each is taken, buried or left."""
        batch = _Batch(deque([items]))
        while batch.groups:
            group = batch.groups[0]
            try:
                rows = await apply([item for _, item in group])
            except Exception as bad:  # noqa: BLE001 — whatever it is, others in the batch go on
                if not await self._waited(batch, group, bad):
                    batch.groups.popleft()
                    await self._split(batch, group, bad)
            else:
                batch.groups.popleft()
                batch.taken.note(group, rows)
                await self._well(group)
        if batch.taken.left:
            words = "%d of %d events are not taken by the database now, and come again: %s"
            log.warning(words, len(batch.taken.left), len(items), self._troubles.of("database"))
        return batch.taken

    async def _waited(self, batch: _Batch, group: Sequence[Read], bad: Exception) -> bool:
        """Wait if the same group is to be tried again: the database is away, or a single event lost a race."""
        if isinstance(bad, TransientError):
            if len(group) > 1 or batch.races == RACES:
                return False
            batch.races += 1
            log.warning("a transaction did not come through, trying again: %s", bad)
        elif isinstance(bad, StoreUnavailableError):
            if isinstance(bad, WorkRefusedError) and (batch.works or await self._works()):
                batch.works = True
                return False
            batch.works = False
            await self._away(group, bad)
        else:
            return False
        await batch.backoff.wait()
        return True

    async def _split(self, batch: _Batch, group: Sequence[Read], bad: Exception) -> None:
        """Find which of the group fails alone; leave or bury that."""
        if len(group) > 1:
            log.info("a batch of %d failed, halving it: %s", len(group), bad)
            half = len(group) // 2
            batch.groups.extendleft((group[half:], group[:half]))
            return
        ((delivery, item),) = group
        if isinstance(bad, StoreUnavailableError):
            await self._leave(delivery, item, bad, batch)
        elif isinstance(item, Dead):
            batch.taken.note(group, [])
        else:
            log.error("an event fails alone and is buried: %s", delivery.subject, exc_info=bad)
            # Its words stay in our log: they may hold values that are nobody else's to read.
            words = f"internal error: {type(bad).__name__}"
            batch.groups.appendleft([(delivery, dead(delivery, Reason.INTERNAL, words, item))])

    async def _works(self) -> bool:
        """Say whether the database can take changes at all, so that it refuses only some of them."""
        try:
            await self._store.check_writable()
        except StoreUnavailableError as bad:
            log.warning("the database can't take changes: %s", bad)
            return False
        return True

    async def _away(self, group: Sequence[Read], bad: StoreUnavailableError) -> None:
        words = f"the database does not take events: {bad}"
        log.warning("the database is away, trying again: %s", bad)
        self._troubles.note("database", words)
        if isinstance(bad, WorkRefusedError):  # it answers, and may be able to keep a note
            await self._show({chat_of(item) for _, item in group}, words)

    async def _leave(self, delivery: Delivery, item: Item, bad: Exception, batch: _Batch) -> None:
        words = f"the database does not take an event of this chat, it is tried again: {bad}"
        batch.taken.left.append(delivery)
        self._troubles.note(
            "database",
            f"the database does not take an event: {bad}",
            what=_place(delivery),
            seconds=SHOWN_FOR,
        )
        chat_id = chat_of(item)
        if chat_id is not None and chat_id not in batch.shown:
            batch.shown.add(chat_id)
            await self._show({chat_id}, words)

    async def _show(self, chat_ids: AbstractSet[str | None], words: str) -> None:
        chats = {chat_id for chat_id in chat_ids if chat_id is not None}
        with suppress(StoreUnavailableError):
            await self._store.note_blocked(chats, words, SHOWN_FOR)
            self._shown |= chats

    async def _well(self, group: Sequence[Read]) -> None:
        self._troubles.clear("database")
        for delivery, _ in group:
            self._troubles.clear("database", _place(delivery))
        if over := self._shown & {chat_of(item) or "" for _, item in group}:
            self._shown -= over
            with suppress(StoreUnavailableError):
                await self._store.note_blocked(over, "", 0)


def _place(delivery: Delivery) -> str:
    return f"{delivery.stream}:{delivery.sequence}"
