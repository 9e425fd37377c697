"""One batch, one transaction: load, apply in memory, write.

Whatever the batch holds, a chat's row is locked before anything of the chat is read, so two workers
never decide on the same snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from handlers.worker import effects, waking
from handlers.worker.chat import Chat
from handlers.worker.inbox import Dead, Fact, Fired, Item, Missed
from handlers.worker.policy import policy
from statemachine import events
from statemachine.arguments import is_uuid
from statemachine.calls import Call, Known
from statemachine.formers import orphans
from statemachine.needs import needs
from statemachine.store import Changes, Key, Outgoing, Store, Transaction
from statemachine.templates import Catalog
from statemachine.wakes import Purpose, wake
from statemachine.words import only_joins
from statemachine.workspace import Limits, Workspace

EMPTY: Final = Catalog({}, {})


async def apply(
    items: Sequence[Item],
    store: Store,
    limits: Limits,
    seed: bytes,
) -> list[Outgoing]:
    """Apply `items` and commit; return what must be published, with what repeats had left over.

    `seed`: random bytes that new ids and names are made of. Raises what the store raises.
    """
    moving = [item for item in items if isinstance(item, Fact | Fired | Missed)]
    dead = [item for item in items if isinstance(item, Dead) and item.rejected.call_id is not None]
    if not moving and not dead:
        return []
    async with store.transaction() as tx:
        # A timer or a mark of a chat that the database does not know must not make one.
        snapshots = await tx.lock(
            {_chat_id(item) for item in moving},
            creating={item.event.chat_id for item in moving if isinstance(item, Fact)},
        )
        moving = [item for item in moving if _chat_id(item) in snapshots]
        known = await tx.known([(f.event.chat_id, f.digest) for f in moving if isinstance(f, Fact)])
        changes = Changes()
        chats = await _chats(moving, snapshots, tx, limits, changes, seed)
        again: set[str] = set()
        """Chats of what came before: it may have been committed and not published."""
        for item in moving:
            if not _take(chats[_chat_id(item)], item, known, changes):
                again.add(_chat_id(item))
        for chat in chats.values():
            chat.close()
        left_over = await tx.unpublished(again)
        # Refusals are made anew whenever their letter comes again. In the outbox one could stay, and
        # stand over the answer to the corrected request later.
        rows = left_over + await tx.write(changes) + await _refusals(dead, changes, tx)
    for chat in chats.values():
        chat.speak()
    return rows


def _take(
    chat: Chat, item: Fact | Fired | Missed, known: set[tuple[str, bytes]], changes: Changes
) -> bool:
    """Apply one item to its chat; say whether it was news."""
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
            return waking.fired(chat, purpose, generation)
        case Missed():
            return waking.missed(chat, item)


def _chat_id(item: Fact | Fired | Missed) -> str:
    return item.event.chat_id if isinstance(item, Fact) else item.chat_id


def _asks(item: Fact | Fired | Missed) -> bool:
    return isinstance(item, Fact) and isinstance(item.event.data, events.ToolRequested)


async def _chats(
    items: Sequence[Fact | Fired | Missed],
    snapshots: dict[str, Workspace],
    tx: Transaction,
    limits: Limits,
    changes: Changes,
    seed: bytes,
) -> dict[str, Chat]:
    """Load what the rules will ask: calls of these chats, and templates, names and settings for them."""
    facts = [item.event for item in items if isinstance(item, Fact)]
    named = {
        Key(event.chat_id, event.data.call_id)
        for event in facts
        if isinstance(event.data, events.ToolRequested | events.ToolCanceled)
    }
    stored = await tx.calls(named)
    moved = {_chat_id(i) for i in items if not _asks(i)}
    waiting = await tx.open_calls(
        {
            c.chat_id
            for c in snapshots.values()
            if c.open_calls and (c.chat_id in moved or not only_joins(c))
        }
    )
    asked = [e.data for e in facts if isinstance(e.data, events.ToolRequested)]
    canceled = await tx.cancellations(named) if asked else set()
    deletes = {e.chat_id for e in facts if isinstance(e.data, events.DeleteRequested)}
    judged = {e.chat_id for e in facts if isinstance(e.data, events.ToolRequested)} | deletes
    judged |= {chat_id for chat_id, calls in waiting.items() if calls}
    judged |= {item.chat_id for item in items if isinstance(item, Fired)}
    known, taken = Known(EMPTY, seed=seed), dict[str, set[str]]()
    if judged:
        calls: list[events.ToolRequested | Call] = list(asked)
        calls += [call for open_calls in waiting.values() for call in open_calls]
        asks = needs(calls, [snapshots[c] for c in judged], facts)
        taken = await tx.names(asks.owners)
        known = Known(
            catalog=await tx.catalog(asks.organizations, asks.templates, asks.versions),
            policy=policy(await tx.settings()),
            names=taken,
            had=await tx.had({f.id for c in judged for f in orphans(snapshots[c])}),
            seed=seed,
        )
    return {
        chat_id: Chat(
            workspace=snapshot,
            open={call.call_id: call for call in waiting.get(chat_id, [])},
            stored=stored,
            canceled=canceled,
            # Call ids are unique in a chat only, and what is made of the seed must be everywhere.
            known=replace(known, seed=seed + chat_id.encode()),
            limits=limits,
            now=tx.now,
            changes=changes,
            armed=_armed(snapshot, limits),
            taken=taken,
            orphans=frozenset(former.id for former in orphans(snapshot)),
        )
        for chat_id, snapshot in snapshots.items()
    }


def _armed(chat: Workspace, limits: Limits) -> dict[Purpose, int]:
    found = {purpose: wake(chat, purpose, limits) for purpose in Purpose}
    return {purpose: open_.generation for purpose, open_ in found.items() if open_ is not None}


async def _refusals(dead: Sequence[Dead], changes: Changes, tx: Transaction) -> list[Outgoing]:
    """Answer dead letters whose call can be told, unless that call was accepted before."""
    keys = {Key(d.chat_id, d.rejected.call_id): d for d in dead if d.rejected.call_id}
    keys = {key: d for key, d in keys.items() if is_uuid(key.chat_id)}
    accepted = {Key(s.call.chat_id, s.call.call_id) for s in changes.calls}
    for key in accepted | (await tx.calls(set(keys))).keys():
        keys.pop(key, None)
    return [
        effects.refused(
            key.chat_id, key.call_id, d.rejected.tool, d.rejected.detail, d.data, tx.now
        )
        for key, d in keys.items()
    ]
