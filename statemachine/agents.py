"""Which of a build's agents the chat talks to (contract §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from statemachine.events import Agent

SUFFIX: Final = "-coderd-chat"
"""An agent whose name ends so (any case) was meant for the chat."""

_NAMES_SHOWN: Final = 64
_NAME_SHOWN: Final = 255
"""How many names an error repeats, and how many characters of each: a state must stay publishable."""


@dataclass(frozen=True, slots=True)
class Unselectable:
    """No agent can be chosen; `message` says why."""

    message: str


def choose(agents: Sequence[Agent]) -> Agent | Unselectable:
    """Choose among root agents. `agents` must not be empty."""
    roots = sorted(
        (agent for agent in agents if agent.parent_id is None),
        key=lambda agent: (agent.display_order, agent.name.lower(), agent.name, agent.id),
    )
    if not roots:
        return Unselectable("the workspace has agents, but each of them belongs to another agent")
    meant = [agent for agent in roots if agent.name.lower().endswith(SUFFIX)]
    if len(meant) > 1:
        names = ", ".join(agent.name[:_NAME_SHOWN] for agent in meant[:_NAMES_SHOWN])
        if len(meant) > _NAMES_SHOWN:
            names += f" and {len(meant) - _NAMES_SHOWN} more"
        return Unselectable(
            f"several agents are named for the chat (…{SUFFIX}): {names}; leave the suffix to one"
        )
    return (meant or roots)[0]
