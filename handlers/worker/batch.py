"""Apply a batch of events in one transaction: load the chats, apply the events in memory, write.

The row of a chat is locked before anything else of the chat is read, so two workers never decide on the
same snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from handlers.worker import effects, timer_events
from handlers.worker.call_limits import policy
from handlers.worker.chat import ChatInBatch
from handlers.worker.clock_skew import LATE
from handlers.worker.deliveries import Dead, Fact, Fired, Item, Missed, Noted, Published, noted
from statemachine import events, redaction
from statemachine.calls import Call, Known, Load
from statemachine.chat import Chat, Limits
from statemachine.ids import is_uuid
from statemachine.lookups import looks_up, lookups
from statemachine.machine import foreign_pool
from statemachine.store import CallKey, Changes, OutboxMessage, Prefetched, Store, Transaction
from statemachine.templates import Catalog
from statemachine.timers import TimerKind, open_timer

log = logging.getLogger(__name__)

EMPTY: Final = Catalog({}, {})
NO_LOAD: Final = Load()
_PROVISIONER: Final = "/provisioner/"
Moving = Fact | Fired | Missed | Published | Noted


@dataclass(slots=True)
class Noticed:
    """What batches found out, besides the rows that they wrote."""

    superseded: set[str] = field(default_factory=set)
    """Chats that follow, or may follow, another build than before: their older agents are disconnected."""
    early: bool = False
    """A timer fired too early since the clocks were last compared."""
    late: bool = False
    """A timer fired very late since the clocks were last compared."""
    trespasses: int = 0
    """Number of facts that provisioners reported about workspaces of other pools."""

    def trespass(self, more: int) -> None:
        """Add `more` to the number of such facts, and log it."""
        self.trespasses += more
        if more:
            log.warning(
                "facts about workspaces of another pool since this worker began: %d",
                self.trespasses,
            )


async def apply(
    items: Sequence[Item],
    store: Store,
    limits: Limits,
    seed: bytes,
    load: Load = NO_LOAD,
    noticed: Noticed | None = None,
) -> list[OutboxMessage]:
    """Apply `items` and commit; return the outbox rows to publish, also those that repeated events left over.

    `seed`: random bytes that new ids and names are made of; `load`: how much waits already.
    Raises what the store raises.
    """
    moving = [moves for item in items if (moves := _moving(item)) is not None]
    dead = [item for item in items if isinstance(item, Dead) and item.rejected.call_id is not None]
    if not moving and not dead:
        return []
    async with store.transaction() as tx:
        # A timer or a marker for a chat that the database does not have must not create the chat.
        snapshots = await tx.lock(
            {_chat_id(item) for item in moving},
            creating={_chat_id(item) for item in moving if isinstance(item, Fact | Published)},
        )
        moving = [item for item in moving if _chat_id(item) in snapshots]
        changes = Changes()
        found = await _found(moving, snapshots, tx)
        moving = [_bound(item, found) for item in moving] if found.pools else moving
        known = Known(EMPTY, seed=seed, load=load)
        chats = await _chats(moving, snapshots, found, tx, limits, changes, known)
        again: set[str] = set()
        """Chats of events that may have been committed before without being published."""
        repeated: set[str] = set()
        trespasses = 0
        for item in moving:
            trespasses += _trespasses(item, chats[_chat_id(item)])
            replaces = _takes_a_place(item, chats[_chat_id(item)].workspace)
            news = _take(chats[_chat_id(item)], item, found, changes)
            if replaces or not news:
                again.add(_chat_id(item))
            if not news and isinstance(item, Fact):
                repeated.add(_chat_id(item))
        for chat in chats.values():
            chat.close()
        left_over = await tx.unpublished(again)
        # Answers to dead letters are created again whenever the message is redelivered. They are not put into
        # the outbox: one that stayed there could replace the answer to the corrected request later.
        rows = left_over + await tx.write(changes) + await _refusals(dead, changes, tx)
    for chat in chats.values():
        chat.speak()
    if noticed is not None:
        noticed.trespass(trespasses)
        noticed.superseded |= (
            repeated  # the worker that committed it may have crashed before it noticed
        )
        for chat_id, chat in chats.items():
            _notice(noticed, snapshots[chat_id], chat.workspace)
            noticed.early |= chat.early
            noticed.late |= chat.late > LATE
    return rows


def _moving(item: Item) -> Moving | None:
    """Return the item as its chat sees it, or None if it does not concern a chat."""
    if isinstance(item, Dead):
        return noted(item)
    return item if isinstance(item, Moving) else None


def _notice(noticed: Noticed, before: Chat, now: Chat) -> None:
    old, new = before.build, now.build
    if old is None or (new is not None and new.id == old.id):
        return
    noticed.superseded.add(now.chat_id)


def _trespasses(item: Moving, chat: ChatInBatch) -> bool:
    """Say whether a provisioner reports on another pool, and log it. Such a fact has no effect."""
    event = item.event if isinstance(item, Fact) else None
    if event is None or (pool := foreign_pool(chat.workspace, event)) is None:
        return False
    words = (
        f"{event.source} of pool {event.pool} reports {event.type} about a workspace of pool {pool}"
    )
    chat.say(logging.WARNING, words, event_id=event.id)
    return True


def _sender(item: Moving) -> str:
    """Return the name of the provisioner that sent the item; empty for other senders."""
    if isinstance(item, Noted):
        return item.sender
    source = item.event.source if isinstance(item, Fact) else ""
    return source.removeprefix(_PROVISIONER) if source.startswith(_PROVISIONER) else ""


def _bound(item: Moving, found: Prefetched) -> Moving:
    """Return a provisioner's fact with the pool that the provisioner is bound to."""
    pool = found.pools.get(_sender(item)) if isinstance(item, Fact) else None
    if pool is None or not isinstance(item, Fact):
        return item
    return replace(item, event=item.event.model_copy(update={"pool": pool}))


def _take(chat: ChatInBatch, item: Moving, found: Prefetched, changes: Changes) -> bool:
    """Apply one item to its chat; return False for a repeat."""
    known = found.known
    match item:
        case Fact(event=event, digest=digest):
            if (event.chat_id, digest) in known:
                chat.repeat(event)
                return False
            known.add((event.chat_id, digest))
            changes.identities.append((event.chat_id, digest))
            chat.apply(event)
            return True
        case Fired(purpose=purpose, generation=generation):
            return timer_events.fired(chat, purpose, generation)
        case Missed():
            return timer_events.missed(chat, item)
        case Published():
            return timer_events.published(chat, item)
        case Noted():
            timer_events.noted(chat, item, found.pools.get(item.sender))
            return True


def _takes_a_place(item: Moving, chat: Chat) -> bool:
    """Say whether it may stand where another was whose work was cut off, and which never comes again.

    A timer that fires replaces its earlier firing, and the sign of life of an agent that is back
    replaces the mark of its absence; what the agent says next undoes the loss.
    """
    if isinstance(item, Noted):
        return False  # a note publishes nothing
    if not isinstance(item, Fact):
        return True
    if not isinstance(item.event.data, events.AgentFact):
        return False
    facts = chat.heard_from(item.event.data.agent_id)
    return facts is not None and facts.lost_at is not None


def _chat_id(item: Moving) -> str:
    return item.event.chat_id if isinstance(item, Fact) else item.chat_id


def _judges(item: Moving) -> bool:
    """Say whether the item always needs the rules: a request, a deletion, or a timer that fired."""
    if not isinstance(item, Fact):
        return isinstance(item, Fired)
    return isinstance(item.event.data, events.ToolRequested | events.DeleteRequested)


def asks(item: Item) -> bool:
    """Say whether the item is a tool call."""
    return isinstance(item, Fact) and isinstance(item.event.data, events.ToolRequested)


async def _found(
    items: Sequence[Moving], snapshots: dict[str, Chat], tx: Transaction
) -> Prefetched:
    """Look up events and calls; waiting calls only of chats that may move."""
    facts = [item for item in items if isinstance(item, Fact)]
    moved = {_chat_id(item) for item in items if not asks(item)}
    return await tx.prefetch(
        [(fact.event.chat_id, fact.digest) for fact in facts],
        {
            CallKey(fact.event.chat_id, fact.event.data.call_id)
            for fact in facts
            if isinstance(fact.event.data, events.ToolRequested | events.ToolCanceled)
        },
        {
            chat.chat_id
            for chat in snapshots.values()
            if chat.open_calls and (chat.chat_id in moved or not chat.calls_only_join)
        },
        {name for item in items if (name := _sender(item))},
    )


async def _chats(
    items: Sequence[Moving],
    snapshots: dict[str, Chat],
    found: Prefetched,
    tx: Transaction,
    limits: Limits,
    changes: Changes,
    known: Known,
) -> dict[str, ChatInBatch]:
    """Load what the rules need: templates, names and settings."""
    facts = [item.event for item in items if isinstance(item, Fact)]
    calls: list[events.ToolRequested | Call] = [
        fact.data for fact in facts if isinstance(fact.data, events.ToolRequested)
    ]
    waiting = [call for of_chat in found.waiting.values() for call in of_chat if looks_up(call)]
    judged = {_chat_id(item) for item in items if _judges(item)}
    judged |= {call.chat_id for call in waiting}
    judged |= {  # masking needs to know which parameters are sensitive
        fact.chat_id
        for fact in facts
        if redaction.has_text(fact) and redaction.builds_with_values(snapshots[fact.chat_id])
    }
    taken = dict[str, set[str]]()
    if judged:
        wanted = lookups([*calls, *waiting], [snapshots[c] for c in judged], facts)
        taken = await tx.workspace_names(wanted.owners)
        catalog, settings = await tx.catalog_and_settings(
            wanted.organizations, wanted.templates, wanted.versions
        )
        known = replace(
            known,
            catalog=catalog,
            policy=policy(settings),
            names=taken,
            had=await tx.current_workspaces({f.id for c in judged for f in snapshots[c].orphans}),
        )
    return {
        chat_id: ChatInBatch(
            workspace=snapshot,
            open={call.call_id: call for call in found.waiting.get(chat_id, [])},
            stored=found.calls,
            canceled=found.canceled,
            # Call ids are unique within a chat, but ids made from the seed must be unique everywhere.
            known=replace(known, seed=known.seed + chat_id.encode()),
            limits=limits,
            now=tx.now,
            changes=changes,
            armed=_armed(snapshot, limits),
            taken=taken,
            orphans=frozenset(former.id for former in snapshot.orphans),
        )
        for chat_id, snapshot in snapshots.items()
    }


def _armed(chat: Chat, limits: Limits) -> dict[TimerKind, int]:
    found = {purpose: open_timer(chat, purpose, limits) for purpose in TimerKind}
    return {purpose: open_.generation for purpose, open_ in found.items() if open_ is not None}


async def _refusals(dead: Sequence[Dead], changes: Changes, tx: Transaction) -> list[OutboxMessage]:
    """Return answers to dead letters whose `call_id` can be read, unless that call was accepted before."""
    keys = {CallKey(d.chat_id, d.rejected.call_id): d for d in dead if d.rejected.call_id}
    keys = {key: d for key, d in keys.items() if is_uuid(key.chat_id)}
    accepted = {CallKey(s.call.chat_id, s.call.call_id) for s in changes.calls}
    for key in accepted | (await tx.calls(set(keys))).keys():
        keys.pop(key, None)
    return [
        effects.refused(
            key.chat_id, key.call_id, d.rejected.tool, d.rejected.detail, d.data, tx.now
        )
        for key, d in keys.items()
    ]
