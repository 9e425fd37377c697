"""Applies a batch of inputs: reads their chats, takes the steps, and writes.

Nothing is locked in between. The write skips the chats that have changed since they were read, so two workers never
write on the grounds of the same snapshot; the skipped chats' inputs are applied again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Final

from msgspec import structs

from handlers.worker import publications
from handlers.worker.call_limits import policy, retention
from handlers.worker.clock_skew import LATE
from handlers.worker.deliveries import Dead, Item, notice_of
from handlers.worker.publications import Publication
from handlers.worker.remembered import Remembered
from statemachine import events, redaction
from statemachine.calls import Call, Known, Load, StoredCall
from statemachine.chat import Chat, Limits
from statemachine.lifetimes import rests_since
from statemachine.lookups import looks_up, lookups
from statemachine.naming import is_uuid
from statemachine.step import (
    AlarmRang,
    Entry,
    FactNotice,
    InboundEvent,
    Input,
    Loaded,
    PublishAnswer,
    PublishedState,
    Step,
    step,
    with_name,
)
from statemachine.store import Alarm, CallKey, Changes, Look, Store, Wanted
from statemachine.templates import Catalog
from statemachine.timers import alarm_time

log = logging.getLogger(__name__)

EMPTY: Final = Catalog({}, {})
NO_LOAD: Final = Load()
_PROVISIONER: Final = "/provisioner/"
Line = tuple[str, Mapping[str, object]]
"""A line of the log, and the ids in it."""


@dataclass(slots=True)
class Noticed:
    """Observations of batches for other parts of the worker, besides the rows that they wrote."""

    superseded: set[str] = field(default_factory=set)
    """Chats that follow, or may follow, another build than before: their older agents are disconnected."""
    early: bool = False
    """An alarm rang too early since the clocks were last compared."""
    late: bool = False
    """A timer took effect very late since the clocks were last compared."""
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


@dataclass(slots=True)
class Applied:
    """The result of one attempt to apply a batch."""

    messages: list[Publication] = field(default_factory=list)
    """The messages to publish."""
    repeated: set[str] = field(default_factory=set)
    """Chats of which an earlier attempt may have committed what it could not publish."""
    again: set[str] = field(default_factory=set)
    """Chats that changed after they were read: their items were not applied."""


async def apply(
    items: Sequence[Item],
    store: Store | Remembered,
    limits: Limits,
    seed: bytes,
    load: Load = NO_LOAD,
    noticed: Noticed | None = None,
) -> Applied:
    """Apply `items` and commit.

    `seed`: random bytes that new ids and names are made of; `load`: how much waits already.
    Raises what the store raises. Then the caller applies `items` again: what was committed nevertheless is
    recognized as repeated.
    """
    inputs = [one for item in items if (one := _input_of(item)) is not None]
    dead = {
        CallKey(item.chat_id, item.rejected.call_id): item
        for item in items
        if isinstance(item, Dead) and item.rejected.call_id is not None and is_uuid(item.chat_id)
    }
    if not inputs and not dead:
        return Applied()
    look = await store.look(_wanted(inputs, dead))
    # A timer or a notice for a chat that the database does not have must not create the chat.
    new = {i.chat_id for i in inputs if isinstance(i, InboundEvent | PublishedState)}
    chats = {chat_id: Chat(chat_id=chat_id) for chat_id in new} | look.chats
    inputs = [_with_pool(item, look.pools) for item in inputs if item.chat_id in chats]
    known = await _look_up(inputs, chats, look, store, Known(EMPTY, seed=seed, load=load))
    steps = _take_steps(inputs, _loaded(chats, look), known, limits, look.now)
    idle = _idle(steps, inputs)
    changes, messages = _changes(steps, chats, look, idle)
    writes = len(idle) < len(steps)
    result = await store.write(changes) if writes else None
    skipped, repeated = (result.skipped, result.repeated) if result else (set(), set())
    written = [taken for taken in steps if taken.chat.chat_id not in skipped]
    _log(written)
    if noticed is not None:
        for taken in written:
            _notice(noticed, chats[taken.chat.chat_id], taken)
    if skipped:
        messages = [message for message in messages if message.chat_id not in skipped]
    alarms = {at for taken in written for at in taken.alarms}
    alarms |= await _alarms_for_rests(written, chats, look, store)
    messages += [publications.alarm(at, look.now) for at in alarms]
    messages += _refusals(dead, look, changes)
    repeated |= {taken.chat.chat_id for taken in written if taken.repeats}
    return Applied(messages, repeated, skipped)


async def _alarms_for_rests(
    written: Sequence[Step], before: Mapping[str, Chat], look: Look, store: Store | Remembered
) -> set[datetime]:
    """Return when workers have to look at the workspaces that rest, if some have come to rest now.

    One alarm is enough for all: when it rings, the next one is set.
    """
    found = ((rests_since(taken.chat), before[taken.chat.chat_id]) for taken in written)
    new = [since for since, chat in found if since is not None and since != rests_since(chat)]
    if not new or (keep := retention(await store.settings())) is None:
        return set()
    first = min(new) + keep
    if first > look.now:
        first = min(first, await store.first_rest(keep) or first)
    return {alarm_time(max(first, look.now), look.now)}


def _idle(steps: Sequence[Step], inputs: Sequence[Input]) -> set[str]:
    """Return the chats to which nothing happened: agents reported activity that does not put any end off."""
    ids = {step.chat.chat_id for step in steps if not step.entries}
    return ids - {item.chat_id for item in inputs if not _is_activity(item)} if ids else ids


def _is_activity(item: Input) -> bool:
    return isinstance(item, InboundEvent) and isinstance(item.event.data, events.AgentActivity)


def _is_new_fact(item: Input) -> bool:
    """Return whether it is a provisioner's or agent's fact that no worker has received before.

    Reports of activity don't count: a batch that writes nothing for them compares nothing.
    """
    if not isinstance(item, InboundEvent) or item.redelivered:
        return False
    return isinstance(item.event.data, events.ProvisionerFact | events.AgentFact)


def asks(item: Item) -> bool:
    """Return whether the item is a tool call."""
    return isinstance(item, InboundEvent) and isinstance(item.event.data, events.ToolRequested)


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
            return structs.replace(item, event=event.model_copy(update={"pool": pool}))
        case FactNotice() if pool is not None:
            return structs.replace(item, pool=pool)
        case _:
            return item


# -- loading --------------------------------------------------------------------------------------


def _wanted(inputs: Sequence[Input], dead: Mapping[CallKey, Dead]) -> Wanted:
    """Return what has to be read: waiting calls only of chats that may move."""
    received = [item for item in inputs if isinstance(item, InboundEvent)]
    may_move = {item.chat_id for item in inputs if not asks(item) and not _is_activity(item)}
    chats = {item.chat_id for item in inputs}
    return Wanted(
        chats=chats,
        identities=[(item.chat_id, item.digest) for item in received],
        calls=dead.keys()
        | {
            CallKey(item.chat_id, item.event.data.call_id)
            for item in received
            if isinstance(item.event.data, events.ToolRequested | events.ToolCanceled)
        },
        waiting=may_move,
        waiting_unless_joined=chats - may_move,
        provisioners={name for item in inputs if (name := _sender(item))},
        facts_only=chats - {item.chat_id for item in inputs if not _is_new_fact(item)},
    )


def _loaded(chats: Mapping[str, Chat], look: Look) -> dict[str, Loaded]:
    applied: dict[str, set[bytes]] = {chat_id: set() for chat_id in chats}
    calls: dict[str, dict[str, StoredCall]] = {chat_id: {} for chat_id in chats}
    canceled: dict[str, set[str]] = {chat_id: set() for chat_id in chats}
    for chat_id, digest in look.known:
        applied[chat_id].add(digest)
    for key, stored in look.calls.items():
        if key.chat_id in calls:  # not only that of a dead letter
            calls[key.chat_id][key.call_id] = stored
    for key in look.canceled:
        if key.chat_id in canceled:
            canceled[key.chat_id].add(key.call_id)
    return {
        chat_id: Loaded(
            chat,
            {call.call_id: call for call in look.waiting.get(chat_id, ())},
            calls[chat_id],
            canceled[chat_id],
            applied[chat_id],
        )
        for chat_id, chat in chats.items()
    }


async def _look_up(
    inputs: Sequence[Input],
    chats: Mapping[str, Chat],
    look: Look,
    store: Store | Remembered,
    known: Known,
) -> Known:
    """Add to `known` the templates, names and settings that the steps need, if they need any."""
    facts = [item.event for item in inputs if isinstance(item, InboundEvent)]
    calls: list[events.ToolRequested | Call] = [
        fact.data for fact in facts if isinstance(fact.data, events.ToolRequested)
    ]
    waiting = [call for of_chat in look.waiting.values() for call in of_chat if looks_up(call)]
    judged = {item.chat_id for item in inputs if _needs_rules(item)}
    judged |= {call.chat_id for call in waiting}
    judged |= {  # masking needs to know which parameters are sensitive
        fact.chat_id
        for fact in facts
        if redaction.has_text(fact) and redaction.builds_with_values(chats[fact.chat_id])
    }
    if not judged:
        return known
    wanted = lookups([*calls, *waiting], [chats[chat_id] for chat_id in judged], facts)
    previous = {r.id for chat_id in judged for r in chats[chat_id].previous if not r.deleted}
    found = await store.look_up(wanted, previous)
    return structs.replace(
        known,
        catalog=found.catalog,
        policy=policy(found.settings),
        names=found.names,
        call_key=found.call_key,
        had=found.current,
    )


def _needs_rules(item: Input) -> bool:
    """Return whether the item is a request, or an alarm."""
    if not isinstance(item, InboundEvent):
        return isinstance(item, AlarmRang)
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
        own = structs.replace(known, seed=known.seed + chat_id.encode())
        taken = step(loaded[chat_id], some, own, limits, at)
        for name in taken.named:
            known = with_name(known, name.owner_id, name.name)
        steps.append(taken)
    return steps


def _changes(
    steps: Sequence[Step], before: Mapping[str, Chat], look: Look, idle: AbstractSet[str]
) -> tuple[Changes, list[Publication]]:
    """Return everything that the steps write, and the messages to publish afterwards."""
    of_chats = [(one.chat.chat_id, one) for one in steps if one.chat.chat_id not in idle]
    effects = [publications.effects_of(one) for _, one in of_chats]
    changes = Changes(
        chats=[one.chat for chat_id, one in of_chats if one.chat is not before[chat_id]],
        unchanged=[chat_id for chat_id, one in of_chats if one.chat is before[chat_id]],
        entries=[(chat_id, entry) for chat_id, one in of_chats for entry in one.entries],
        identities=[(chat_id, digest) for chat_id, one in of_chats for digest in one.identities],
        calls=[stored for _, one in of_chats for stored in one.calls.values()],
        cancellations=[CallKey(chat_id, c) for chat_id, one in of_chats for c in one.canceled],
        names=[name for _, one in of_chats for name in one.named],
        freed=[
            (workspace_id, chat_id) for chat_id, one in of_chats for workspace_id in one.deleted
        ],
        jobs=[job for _, jobs in effects for job in jobs],
        unneeded_jobs=[
            (build_id, chat_id) for chat_id, one in of_chats for build_id in one.unneeded_jobs
        ],
        alarms=[Alarm(at, chat_id) for chat_id, one in of_chats for at in one.alarms],
        handled=[Alarm(at, chat_id) for chat_id, one in of_chats for at in one.rang],
        row_versions=look.row_versions,
    )
    return changes, [message for messages, _ in effects for message in messages]


def _notice(noticed: Noticed, before: Chat, taken: Step) -> None:
    noticed.trespass(taken.foreign)
    noticed.late |= taken.late > LATE
    old, new = before.build, taken.chat.build
    replaced = old is not None and (new is None or new.id != old.id)
    # The worker that committed a repeated event may have crashed before it noticed.
    if replaced or taken.repeats:
        noticed.superseded.add(before.chat_id)


def _log(steps: Sequence[Step]) -> None:
    """Log the notices and the moves of steps, and with DEBUG everything else that they did.

    All moves are one record, which `handlers.cli.logs` shows as one line each.
    """
    for taken in steps:
        for notice in taken.notices:
            log.log(notice.level, "%s", notice.text, extra=notice.ids)
    entries = [(taken.chat.chat_id, entry) for taken in steps for entry in taken.entries]
    _log_lines(logging.INFO, [_line_of(*one) for one in entries if one[1].outcome == "moved"])
    if log.isEnabledFor(logging.DEBUG):
        others = [_line_of(*one) for one in entries if one[1].outcome != "moved"]
        _log_lines(logging.DEBUG, [*others, *chain.from_iterable(map(_answers_of, steps))])


def _log_lines(level: int, lines: Sequence[Line]) -> None:
    if lines:
        log.log(level, "\n".join(text for text, _ in lines), extra={"lines": lines})


def _line_of(chat_id: str, entry: Entry) -> Line:
    event = entry.event
    return (
        f"chat {chat_id}: {entry.outcome} {event.type}: {entry.state_before} -> {entry.state_after}",
        {"chat_id": chat_id, "event_id": event.id, "version": entry.version},
    )


def _answers_of(taken: Step) -> Iterator[Line]:
    for effect in taken.effects:
        if isinstance(effect, PublishAnswer):
            call, how = effect.call, "error" if "error" in effect.answer.result else "well"
            ids = {"chat_id": call.chat_id, "call_id": call.call_id}
            yield f"chat {call.chat_id}: answered {call.tool}: {how}", ids


def _refusals(dead: Mapping[CallKey, Dead], look: Look, changes: Changes) -> list[Publication]:
    """Return answers to dead letters whose `call_id` can be read, unless that call was accepted before.

    They are created again whenever the message is redelivered.
    """
    accepted = {CallKey(s.call.chat_id, s.call.call_id) for s in changes.calls} | look.calls.keys()
    return [
        publications.refused(
            key.chat_id, key.call_id, d.rejected.tool, d.rejected.detail, d.data, look.now
        )
        for key, d in dead.items()
        if key not in accepted
    ]
