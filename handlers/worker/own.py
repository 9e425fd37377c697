"""Events of workspaced's own making, as they stand in a chat's log beside those of others."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

from statemachine.events import OURS, AgentDisconnected, Event, OwnEvent


def own(
    chat_id: str, data: OwnEvent | AgentDisconnected, at: datetime, because: Event | None = None
) -> Event:
    """Return an event with a new identity, in the trace of the one that it follows from."""
    return Event.model_construct(
        source=OURS,
        id=str(uuid4()),
        chat_id=chat_id,
        time=at,
        traceparent=because.traceparent if because else None,
        data=data,
    )
