"""Applies a batch of inputs: loads their chats, takes the steps, and writes.

Two workers never write on the grounds of the same snapshot. A batch of facts locks nothing: its write skips the
chats that have changed since they were read. All other inputs, and those of the skipped chats, are applied in a
transaction that locks the row of a chat before it reads anything else of the chat.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from handlers.worker import publications
from handlers.worker.call_limits import policy
from handlers.worker.clock_skew import LATE
from handlers.worker.deliveries import Dead, Item, notice_of
from statemachine import events, redaction
from statemachine.calls import Call, Known, Load, StoredCall
from statemachine.chat import Chat, Limits
from statemachine.lookups import looks_up, lookups
from statemachine.naming import is_uuid
from statemachine.step import (
    FactNotice,
    InboundEvent,
    Input,
    Loaded,
    PublishAnswer,
    PublishedState,
    PublishJob,
    Step,
    TimerFired,
    step,
    with_name,
)
from statemachine.store import CallKey, Changes, OutboxMessage, Prefetched, Store, Transaction
from statemachine.templates import Catalog

log = logging.getLogger(__name__)

EMPTY: Final = Catalog({}, {})
NO_LOAD: Final = Load()
_PROVISIONER: Final = "/provisioner/"


@dataclass(slots=True)
class Noticed:
    """Observations of batches for other parts of the worker, besides the rows that they wrote."""

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
    inputs = [one for item in items if (one := _input_of(item)) is not None]
    dead = [item for item in items if isinstance(item, Dead) and item.rejected.call_id is not None]
    known, done = Known(EMPTY, seed=seed, load=load), noticed or Noticed()
    rows: list[OutboxMessage] = []
    if inputs and not dead and all(_is_fact(item) for item in inputs):
        rows, inputs = await _apply_facts(inputs, store, limits, known, done)
    if inputs or dead:
        rows += await _apply_locked(inputs, dead, store, limits, known, done)
    return rows


async def _apply_facts(
    inputs: Sequence[Input], store: Store, limits: Limits, known: Known, noticed: Noticed
) -> tuple[list[OutboxMessage], list[Input]]:
    """Apply facts without locks: one statement reads, another one writes what has not changed meanwhile.

    Return the outbox rows, and the inputs that were not applied: those of chats that somebody else changed,
    that do not exist yet, or whose steps need or change more than these two statements cover.
    """
    look = await store.look(
        {item.chat_id for item in inputs},
        [(item.chat_id, item.digest) for item in inputs if isinstance(item, InboundEvent)],
        {name for item in inputs if (name := _sender(item))},
    )
    inputs = [_with_pool(item, look.found.pools) for item in inputs]
    looks_up_chats = _chats_that_look_up(inputs, look.chats, look.found)
    simple = {
        chat_id: loaded
        for chat_id, loaded in _loaded(look.chats, look.found).items()
        if chat_id not in looks_up_chats
    }
    some = [item for item in inputs if item.chat_id in simple]
    if not some or look.now is None:
        return [], inputs
    steps = [s for s in _take_steps(some, simple, known, limits, look.now) if _is_simple(s)]
    rows, skipped = await store.write_unchanged(_changes(steps), look.row_versions)
    written = [taken for taken in steps if taken.chat.chat_id not in skipped]
    _report(written, look.chats, noticed)
    applied = {taken.chat.chat_id for taken in written}
    return rows, [item for item in inputs if item.chat_id not in applied]


async def _apply_locked(
    inputs: Sequence[Input],
    dead: Sequence[Dead],
    store: Store,
    limits: Limits,
    known: Known,
    noticed: Noticed,
) -> list[OutboxMessage]:
    """Apply inputs in a transaction that locks their chats; return the outbox rows."""
    async with store.transaction() as tx:
        # A timer or a notice for a chat that the database does not have must not create the chat.
        snapshots = await tx.lock(
            {item.chat_id for item in inputs},
            creating={i.chat_id for i in inputs if isinstance(i, InboundEvent | PublishedState)},
        )
        inputs = [item for item in inputs if item.chat_id in snapshots]
        found = await _prefetch(inputs, snapshots, tx)
        inputs = [_with_pool(item, found.pools) for item in inputs]
        known = await _look_up(inputs, snapshots, found, tx, known)
        steps = _take_steps(inputs, _loaded(snapshots, found), known, limits, tx.now)
        changes = _changes(steps)
        left_over = await tx.unpublished({s.chat.chat_id for s in steps if s.may_repeat})
        # Answers to dead letters are created again whenever the message is redelivered. They are not put into
        # the outbox: one that stayed there could replace the answer to the corrected request later.
        rows = left_over + await tx.write(changes) + await _refusals(dead, changes, tx)
    _report(steps, snapshots, noticed)
    return rows


def asks(item: Item) -> bool:
    """Return whether the item is a tool call."""
    return isinstance(item, InboundEvent) and isinstance(item.event.data, events.ToolRequested)


def _is_fact(item: Input) -> bool:
    requests = events.ToolRequested | events.ToolCanceled | events.DeleteRequested
    return isinstance(item, InboundEvent) and not isinstance(item.event.data, requests)


def _is_simple(taken: Step) -> bool:
    """Return whether `Store.write_unchanged` writes all of a step, and nothing older is left to publish."""
    requests_build = any(isinstance(effect, PublishJob) for effect in taken.effects)
    return not (
        taken.may_repeat or taken.canceled or taken.named or taken.deleted or requests_build
    )


def _input_of(item: Item) -> Input | None:
    """Return the item as its chat receives it, or None if it does not concern a chat."""
    if isinstance(item, Dead):
        return notice_of(item)
    return item if isinstance(item, Input) else None


def _sender(item: Input) -> str:
    """Return the name of the provisioner that sent the item; empty for other senders."""
    if isinstance(item, FactNotice):
        return item.sender
    source = item.event.source if isinstance(item, InboundEvent) else ""
    return source.removeprefix(_PROVISIONER) if source.startswith(_PROVISIONER) else ""


def _with_pool(item: Input, pools: Mapping[str, str]) -> Input:
    """Return a provisioner's input with the pool that the provisioner is bound to."""
    pool = pools.get(_sender(item)) if pools else None
    match item:
        case InboundEvent(event=event) if pool is not None:
            return replace(item, event=event.model_copy(update={"pool": pool}))
        case FactNotice() if pool is not None:
            return replace(item, pool=pool)
        case _:
            return item


# -- loading --------------------------------------------------------------------------------------


async def _prefetch(
    inputs: Sequence[Input], snapshots: Mapping[str, Chat], tx: Transaction
) -> Prefetched:
    """Look up events and calls; waiting calls only of chats that may move."""
    received = [item for item in inputs if isinstance(item, InboundEvent)]
    may_move = {item.chat_id for item in inputs if not asks(item)}
    return await tx.prefetch(
        [(item.chat_id, item.digest) for item in received],
        {
            CallKey(item.chat_id, item.event.data.call_id)
            for item in received
            if isinstance(item.event.data, events.ToolRequested | events.ToolCanceled)
        },
        {
            chat.chat_id
            for chat in snapshots.values()
            if chat.open_calls and (chat.chat_id in may_move or not chat.calls_only_join)
        },
        {name for item in inputs if (name := _sender(item))},
    )


def _loaded(snapshots: Mapping[str, Chat], found: Prefetched) -> dict[str, Loaded]:
    applied: dict[str, set[bytes]] = {chat_id: set() for chat_id in snapshots}
    calls: dict[str, dict[str, StoredCall]] = {chat_id: {} for chat_id in snapshots}
    canceled: dict[str, set[str]] = {chat_id: set() for chat_id in snapshots}
    for chat_id, digest in found.known:
        applied[chat_id].add(digest)
    for key, stored in found.calls.items():
        calls[key.chat_id][key.call_id] = stored
    for key in found.canceled:
        canceled[key.chat_id].add(key.call_id)
    return {
        chat_id: Loaded(
            chat,
            {call.call_id: call for call in found.waiting.get(chat_id, ())},
            calls[chat_id],
            canceled[chat_id],
            applied[chat_id],
        )
        for chat_id, chat in snapshots.items()
    }


def _chats_that_look_up(
    inputs: Sequence[Input], snapshots: Mapping[str, Chat], found: Prefetched
) -> set[str]:
    """Return the chats whose steps need templates, names or settings."""
    judged = {item.chat_id for item in inputs if _needs_rules(item)}
    judged |= {
        chat_id for chat_id, calls in found.waiting.items() if any(looks_up(c) for c in calls)
    }
    return judged | {  # masking needs to know which parameters are sensitive
        item.chat_id
        for item in inputs
        if isinstance(item, InboundEvent)
        and item.chat_id in snapshots
        and redaction.has_text(item.event)
        and redaction.builds_with_values(snapshots[item.chat_id])
    }


async def _look_up(
    inputs: Sequence[Input],
    snapshots: Mapping[str, Chat],
    found: Prefetched,
    tx: Transaction,
    known: Known,
) -> Known:
    """Add to `known` the templates, names and settings that the steps need."""
    judged = _chats_that_look_up(inputs, snapshots, found)
    if not judged:
        return known
    facts = [item.event for item in inputs if isinstance(item, InboundEvent)]
    calls: list[events.ToolRequested | Call] = [
        fact.data for fact in facts if isinstance(fact.data, events.ToolRequested)
    ]
    waiting = [call for of_chat in found.waiting.values() for call in of_chat if looks_up(call)]
    wanted = lookups([*calls, *waiting], [snapshots[c] for c in judged], facts)
    names = await tx.workspace_names(wanted.owners)
    catalog, settings = await tx.catalog_and_settings(
        wanted.organizations, wanted.templates, wanted.versions
    )
    orphans = {orphan.id for chat_id in judged for orphan in snapshots[chat_id].orphans}
    return replace(
        known,
        catalog=catalog,
        policy=policy(settings),
        names=names,
        had=await tx.current_workspaces(orphans),
    )


def _needs_rules(item: Input) -> bool:
    """Return whether the item is a request, or a timer that fired."""
    if not isinstance(item, InboundEvent):
        return isinstance(item, TimerFired)
    return isinstance(item.event.data, events.ToolRequested | events.DeleteRequested)


# -- the steps ------------------------------------------------------------------------------------


def _take_steps(
    inputs: Sequence[Input],
    loaded: Mapping[str, Loaded],
    known: Known,
    limits: Limits,
    at: datetime,
) -> list[Step]:
    """Return one step for each chat. A name that one chat gets is in use for the following chats."""
    of_chat: dict[str, list[Input]] = {}
    for item in inputs:
        of_chat.setdefault(item.chat_id, []).append(item)
    steps: list[Step] = []
    for chat_id, some in of_chat.items():
        # Call ids are unique within a chat, but ids made from the seed must be unique everywhere.
        own = replace(known, seed=known.seed + chat_id.encode())
        taken = step(loaded[chat_id], some, own, limits, at)
        for _, owner_id, name in taken.named:
            known = with_name(known, owner_id, name)
        steps.append(taken)
    return steps


def _changes(steps: Sequence[Step]) -> Changes:
    """Return everything that the steps write."""
    changes = Changes()
    for taken in steps:
        chat_id = taken.chat.chat_id
        rows, jobs = publications.rows_of(taken)
        changes.chats.append(taken.chat)
        changes.entries += [(chat_id, entry) for entry in taken.entries]
        changes.identities += [(chat_id, digest) for digest in taken.identities]
        changes.calls += taken.calls.values()
        changes.cancellations += [CallKey(chat_id, call_id) for call_id in taken.canceled]
        changes.names += [
            (workspace, chat_id, owner, name) for workspace, owner, name in taken.named
        ]
        changes.freed += [(workspace_id, chat_id) for workspace_id in taken.deleted]
        changes.outbox += rows
        changes.jobs += jobs
    return changes


def _report(steps: Sequence[Step], before: Mapping[str, Chat], noticed: Noticed) -> None:
    """Log committed steps, and note what concerns other parts of the worker."""
    for taken in steps:
        _log(taken)
        _notice(noticed, before[taken.chat.chat_id], taken)


def _notice(noticed: Noticed, before: Chat, taken: Step) -> None:
    noticed.trespass(taken.foreign)
    noticed.early |= taken.early
    noticed.late |= taken.late > LATE
    old, new = before.build, taken.chat.build
    replaced = old is not None and (new is None or new.id != old.id)
    # The worker that committed a repeated event may have crashed before it noticed.
    if replaced or taken.repeats:
        noticed.superseded.add(before.chat_id)


def _log(taken: Step) -> None:
    """Log the notices and the moves of a step, and with DEBUG everything else that it did."""
    chat_id = taken.chat.chat_id
    for notice in taken.notices:
        log.log(notice.level, "%s", notice.text, extra=notice.ids)
    for entry in taken.entries:
        level = logging.INFO if entry.outcome == "moved" else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(
                level,
                "chat %s: %s %s: %s -> %s",
                *(chat_id, entry.outcome, entry.event.type, entry.state_before, entry.state_after),
                extra={"chat_id": chat_id, "event_id": entry.event.id, "version": entry.version},
            )
    if not log.isEnabledFor(logging.DEBUG):
        return
    for effect in taken.effects:
        if isinstance(effect, PublishAnswer):
            call, how = effect.call, "error" if "error" in effect.answer.result else "well"
            ids = {"chat_id": chat_id, "call_id": call.call_id}
            log.debug("chat %s: answered %s: %s", chat_id, call.tool, how, extra=ids)


async def _refusals(dead: Sequence[Dead], changes: Changes, tx: Transaction) -> list[OutboxMessage]:
    """Return answers to dead letters whose `call_id` can be read, unless that call was accepted before."""
    keys = {CallKey(d.chat_id, d.rejected.call_id): d for d in dead if d.rejected.call_id}
    keys = {key: d for key, d in keys.items() if is_uuid(key.chat_id)}
    accepted = {CallKey(s.call.chat_id, s.call.call_id) for s in changes.calls}
    for key in accepted | (await tx.calls(set(keys))).keys():
        keys.pop(key, None)
    return [
        publications.refused(
            key.chat_id, key.call_id, d.rejected.tool, d.rejected.detail, d.data, tx.now
        )
        for key, d in keys.items()
    ]
