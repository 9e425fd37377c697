"""What timers and missing signs of life do to a chat of the batch."""

from __future__ import annotations

import logging
from datetime import timedelta

from handlers.worker.chat import Chat
from handlers.worker.own import own
from statemachine import events, judging, wakes
from statemachine.wakes import Purpose

log = logging.getLogger(__name__)


def fired(chat: Chat, purpose: Purpose, generation: int) -> bool:
    """Let a time be over, if the timer is the present one's and it is; say whether.

    An old timer, or one of a clock that runs ahead, has the open one armed again.
    """
    wake = wakes.wake(chat.workspace, purpose, chat.limits)
    if wake is None:
        return False
    if generation != wake.generation or chat.now < wake.at:
        early = wake.at - chat.now if generation == wake.generation else timedelta(0)
        chat.rearm(purpose, early)  # by the difference later, else it would fire again at once
        return False
    match purpose:
        case Purpose.DEADLINE:
            chat.take(_event(chat, events.DeadlinePassed(generation=generation)))
        case Purpose.TTL:
            _expire(chat)
        case Purpose.ORPHAN:
            _stop_orphans(chat)
    return True


def missed(chat: Chat, agent_id: str) -> bool:
    """Let an agent be lost, if it is one that was there; say whether."""
    facts = chat.workspace.facts_of(agent_id)
    if facts is None or not facts.connected:
        return False
    lost = events.AgentDisconnected(
        workspace_id=facts.workspace_id,
        build_id=facts.build_id,
        agent_id=agent_id,
        sequence=None,
        reason="no sign of life",
    )
    chat.take(_event(chat, lost))
    return True


def _expire(chat: Chat) -> None:
    build = chat.workspace.build
    if build is None:
        return
    event = _event(chat, events.TtlPassed(build_id=build.id))
    stop = judging.expiry(chat.workspace, chat.known, event.id)
    chat.take(event)
    if stop is None:
        log.error("chat %s: nobody here can stop its workspace after its lifetime", event.chat_id)
        return
    chat.follow(stop, event)


def _stop_orphans(chat: Chat) -> None:
    for former in wakes.overdue(chat.workspace, chat.now, chat.limits):
        event = _event(chat, events.OrphanGracePassed(workspace_id=former.id))
        stop = judging.orphan(chat.workspace, chat.known, former.id, event.id)
        chat.take(event)
        if stop is not None:
            chat.follow(stop, event)
        elif former.id not in chat.known.had:
            log.error("workspace %s runs, no chat has it, and nobody here can stop it", former.id)


def _event(chat: Chat, data: events.OwnEvent | events.AgentDisconnected) -> events.Event:
    return own(chat.workspace.chat_id, data, chat.now)
