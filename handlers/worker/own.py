"""Events that workspaced itself creates, as they are logged among those of other senders."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

from statemachine.events import OURS, AgentDisconnected, Event, OwnEvent


def own(
    chat_id: str, data: OwnEvent | AgentDisconnected, at: datetime, because: Event | None = None
) -> Event:
    """Return an event with a new identity, in the trace of the event that led to it."""
    return Event.model_construct(
        source=OURS,
        id=str(uuid4()),
        chat_id=chat_id,
        time=at,
        traceparent=because.traceparent if because else None,
        data=data,
    )
