"""Creates the events of workspaced itself, which are logged like the events of other senders."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

from statemachine.events import OURS, AgentDisconnected, Event, OwnEvent


def own(
    chat_id: str, data: OwnEvent | AgentDisconnected, at: datetime, because: Event | None = None
) -> Event:
    """Return an event of workspaced with a new identity.

    It has the trace context of `because`, the event that caused it, if there is one.
    """
    return Event.model_construct(
        source=OURS,
        id=str(uuid4()),
        chat_id=chat_id,
        time=at,
        traceparent=because.traceparent if because else None,
        data=data,
    )
