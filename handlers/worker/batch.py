"""One batch, one transaction: load, apply in memory, write.

Whatever the batch holds, a chat's row is locked before anything of the chat is read, so two workers
never decide on the same snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence

from handlers.worker import effects
from handlers.worker.chat import Chat
from handlers.worker.inbox import Dead, Fact, Fired, Item, Missed
from handlers.worker.policy import policy
from statemachine import events
from statemachine.calls import Answered, Call, Known
from statemachine.store import Changes, Key, Outgoing, Store, Transaction
from statemachine.templates import Catalog
from statemachine.workspace import Limits, Workspace

EMPTY = Catalog({}, {})


async def apply(items: Sequence[Item], store: Store, limits: Limits, seed: bytes) -> list[Outgoing]:
    """Apply `items` and commit; return what must be published, with what repeats had left over.

    `seed`: random bytes that new ids and names are made of. Raises what the store raises.
    """
    moving = [item for item in items if isinstance(item, Fact | Fired | Missed)]
    dead = [item for item in items if isinstance(item, Dead) and item.rejected.call_id is not None]
    if not moving and not dead:
        return []
    async with store.transaction() as tx:
        snapshots = await tx.lock({_chat_id(item) for item in moving})
        known = await tx.known([(f.event.chat_id, f.digest) for f in moving if isinstance(f, Fact)])
        fresh = [
            i for i in moving if not isinstance(i, Fact) or (i.event.chat_id, i.digest) not in known
        ]
        changes = Changes()
        chats = await _chats(fresh, snapshots, tx, limits, changes, seed)
        repeated: set[str] = set()
        for item in moving:
            chat = chats[_chat_id(item)]
            match item:
                case Fact(event=event, digest=digest):
                    if (event.chat_id, digest) in known:
                        chat.repeat(event)
                        repeated.add(event.chat_id)
                        continue
                    known.add((event.chat_id, digest))
                    changes.identities.append((event.chat_id, digest))
                    chat.apply(event)
                case Fired(generation=generation):
                    chat.fired(generation)
                case Missed(agent_id=agent_id):
                    chat.missed(agent_id)
        for chat in chats.values():
            chat.close()
        changes.outgoing += await _refusals(dead, tx)
        left_over = await tx.unpublished(repeated)
        return left_over + await tx.write(changes)


def _chat_id(item: Fact | Fired | Missed) -> str:
    return item.event.chat_id if isinstance(item, Fact) else item.chat_id


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
    waiting = await tx.open_calls({c.chat_id for c in snapshots.values() if c.open_calls})
    asked = [e.data for e in facts if isinstance(e.data, events.ToolRequested)]
    canceled = await tx.cancellations(named) if asked else set()
    deletes = {e.chat_id for e in facts if isinstance(e.data, events.DeleteRequested)}
    judged = {e.chat_id for e in facts if isinstance(e.data, events.ToolRequested)} | deletes
    judged |= {chat_id for chat_id, calls in waiting.items() if calls}
    known = Known(EMPTY, seed=seed)
    if judged:
        calls = [call for open_calls in waiting.values() for call in open_calls]
        known = await _known(asked, calls, [snapshots[c] for c in judged], tx, seed)
    return {
        chat_id: Chat(
            workspace=snapshot,
            open={call.call_id: call for call in waiting.get(chat_id, [])},
            stored=stored,
            canceled=canceled,
            known=known,
            limits=limits,
            now=tx.now,
            changes=changes,
            armed=snapshot.generation,
        )
        for chat_id, snapshot in snapshots.items()
    }


async def _known(
    asked: Sequence[events.ToolRequested],
    waiting: Sequence[Call],
    chats: Sequence[Workspace],
    tx: Transaction,
    seed: bytes,
) -> Known:
    calls: list[events.ToolRequested | Call] = [*asked, *waiting]
    listing = {call.organization_id for call in calls if call.tool == "list_templates"}
    templates = {
        str(call.args["template_id"]).strip().lower()
        for call in calls
        if _is_uuid(call.args.get("template_id"))
    }
    versions: set[str] = set()
    for chat in chats:
        if chat.ref is not None and chat.ref.template_id is not None:
            templates.add(chat.ref.template_id)
        for build in (chat.build, chat.last_start):
            if build is not None and build.template_version_id is not None:
                versions.add(build.template_version_id)
            if build is not None and build.template is not None:
                versions.add(build.template.version_id)
    owners = {call.owner_id for call in calls if call.tool == "create_workspace"}
    return Known(
        catalog=await tx.catalog(listing, templates, versions),
        policy=policy(await tx.settings()),
        names=await tx.names(owners),
        seed=seed,
    )


def _is_uuid(value: object) -> bool:
    return isinstance(value, str) and len(value.strip()) == 36 and value.strip().count("-") == 4  # noqa: PLR2004


async def _refusals(dead: Sequence[Dead], tx: Transaction) -> list[Outgoing]:
    """Answer dead letters whose call can be told, unless that call was accepted before."""
    keys = {Key(d.chat_id, d.rejected.call_id): d for d in dead if d.rejected.call_id}
    keys = {key: d for key, d in keys.items() if _is_uuid(key.chat_id)}
    for key in await tx.calls(set(keys)):
        del keys[key]
    return [
        effects.result(
            key.chat_id,
            key.call_id,
            d.rejected.tool or "",
            Answered(
                {"error": f"the request was not accepted: {d.rejected.detail}"}, is_error=True
            ),
            None,
            tx.now,
            f"{key.chat_id}:{key.call_id}:{effects.digest(d.data)}",
        )
        for key, d in keys.items()
    ]
