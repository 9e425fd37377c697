"""Applies the items of a batch that are not inbound events to a chat of the batch.

These are fired timers, lost agents, dead letters, and states that were published before a restore.
"""

from __future__ import annotations

import json
import logging

from handlers.worker.chat import ChatInBatch
from handlers.worker.deliveries import Missed, Noted, Published
from handlers.worker.own import own
from statemachine import events, timers, tool_rules
from statemachine.chat import Chat
from statemachine.timers import TimerKind
from statemachine.views import state_changed


def fired(chat: ChatInBatch, purpose: TimerKind, generation: int) -> bool:
    """Apply a fired timer if it is the chat's present one and its time has come; return whether.

    Otherwise the worker arms the chat's present timer again: the fired one is of an older
    generation, or the clock of NATS runs ahead.
    """
    wake = timers.open_timer(chat.workspace, purpose, chat.limits)
    if wake is None:
        return False
    if generation != wake.generation or chat.now < wake.at:
        chat.early |= generation == wake.generation
        chat.rearm(purpose)
        return False
    chat.late = max(chat.late, chat.now - wake.at)
    match purpose:
        case TimerKind.DEADLINE:
            chat.take(_event(chat, events.DeadlinePassed(generation=generation)))
        case TimerKind.TTL:
            _expire(chat)
        case TimerKind.ORPHAN:
            _stop_orphans(chat)
    return True


def missed(chat: ChatInBatch, item: Missed) -> bool:
    """Record that an agent is lost; return whether that applies.

    It applies if the agent counts as connected and has reported nothing since the worker looked for
    its presence message.
    """
    facts = chat.workspace.heard_from(item.agent_id)
    if facts is None or not facts.connected or facts.highest != item.highest:
        return False
    lost = events.AgentDisconnected(
        workspace_id=facts.workspace_id,
        build_id=facts.build_id,
        agent_id=item.agent_id,
        sequence=None,
        reason="no sign of life",
    )
    chat.take(_event(chat, lost))
    return True


def went_back(chat: Chat, item: Published) -> bool:
    """Return whether the chat's snapshot is older than its published state: a restore set it back.

    Keys that only one of them has are ignored: another version of this program published the state.
    """
    if item.version != chat.version:
        return item.version > chat.version
    kept = json.loads(json.dumps(state_changed(chat)))
    return any(item.state[key] != kept[key] for key in kept.keys() & item.state.keys())


def published(chat: ChatInBatch, item: Published) -> bool:
    """Record that a restore set the chat back, so that its next versions are above `item.version`.

    Return whether that applies.
    """
    if not went_back(chat.workspace, item):
        return False
    chat.take(_event(chat, events.DatabaseRestored(published_version=item.version)))
    return True


def noted(chat: ChatInBatch, item: Noted, pool: str | None) -> None:
    """Record on the chat that a fact about one of its builds was not accepted.

    `pool` is the pool to which the sender's credential is bound, None if it is not bound.
    """
    event = _event(chat, item.fact).model_copy(
        update={"pool": pool, "notice": f"it is a dead letter: {item.fact.detail}"}
    )
    chat.take(event)


def _expire(chat: ChatInBatch) -> None:
    build = chat.workspace.build
    if build is None:
        return
    event = _event(chat, events.TtlPassed(build_id=build.id))
    stop = tool_rules.expiry(chat.workspace, chat.known, event.id)
    chat.take(event)
    if stop is None:
        chat.say(logging.ERROR, "nobody here can stop its workspace after its lifetime")
        return
    chat.follow(stop, event)


def _stop_orphans(chat: ChatInBatch) -> None:
    for former in timers.overdue(chat.workspace, chat.now, chat.limits):
        event = _event(chat, events.OrphanGracePassed(workspace_id=former.id))
        stop = tool_rules.orphan(chat.workspace, chat.known, former.id, event.id)
        chat.take(event)
        if stop is not None:
            chat.follow(stop, event)
        elif former.id not in chat.known.had:
            chat.say(
                logging.ERROR, f"nobody here can stop workspace {former.id}, which no chat has"
            )


def _event(chat: ChatInBatch, data: events.OwnEvent | events.AgentDisconnected) -> events.Event:
    return own(chat.workspace.chat_id, data, chat.now)
