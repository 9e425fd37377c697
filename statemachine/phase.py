"""The words of contract §5 for a chat, where a state alone does not say them."""

from __future__ import annotations

from statemachine.agents import Unselectable, choose
from statemachine.chat import Chat
from statemachine.states import STATE_INFO, Phase


def phase_of(chat: Chat) -> Phase:
    """Return the word of contract §5 for the chat; after a failed stop or delete its builds say it."""
    about = STATE_INFO[chat.state]
    word = about.word
    if about.end_rejected is not None and chat.rejection is not None and chat.rejection.ends:
        word = about.end_rejected
    return chat.standing if word is Phase.FAILED_STOP else word


def usable(chat: Chat) -> bool:
    """Say whether a running workspace's agent is there or may still come, or can't be told."""
    build = chat.start_build
    if build is None or build.outcome is None or not build.outcome.agents:
        return False
    chosen = choose(build.outcome.agents)
    if isinstance(chosen, Unselectable):
        return True
    facts = chat.facts_of(chosen.id)
    if facts is None or facts.connected is None:
        return not STATE_INFO[chat.state].overdue
    return facts.connected


def only_joins(chat: Chat) -> bool:
    """Say whether a call that comes can only wait here, or be answered at once, and move nothing.

    So it is while a build is under way: those that wait already need not be looked at.
    """
    about = STATE_INFO[chat.state]
    return about.word in (Phase.BEING_BUILT, Phase.BEING_STOPPED) and not about.settled
