"""Event logs as a worker records them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from statemachine.chat import Chat
from statemachine.codec import timestamp, written
from statemachine.events import Event
from statemachine.fold import Unmoved
from statemachine.machine import Ignored
from statemachine.replay import entry_of
from tests.unit.facts import CHAT, NOW, apply


def recorded(facts: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """Yield the log of a new chat that received `facts` in this order, one per second."""
    workspace, known = Chat(chat_id=CHAT), set[tuple[str, str]]()
    for seq, fact in enumerate(facts, 1):
        at, identity = NOW + timedelta(seconds=seq), (fact.source, fact.id)
        decision = (
            Ignored(workspace, Unmoved.REPEAT) if identity in known else apply(workspace, fact, at)
        )
        known.add(identity)
        yield {
            "seq": seq,
            "event": json.loads(written(fact)),
            **entry_of(workspace, decision),
            "at": timestamp(at),
        }
        workspace = decision.chat
