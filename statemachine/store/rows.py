"""A transaction's changes as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from pydantic_core import to_json

from statemachine import codec
from statemachine.calls import call_to_json
from statemachine.chat import chat_to_json
from statemachine.store import Changes
from statemachine.store.audit import columns_of


def arrays_of(changes: Changes) -> list[list[Any]]:
    """Return what the statement `write` takes: the columns of the five tables that it writes."""
    chats = [
        (chat.chat_id, *columns_of(chat).values(), chat_to_json(chat)) for chat in changes.chats
    ]
    entries = [
        (
            chat_id,
            entry.seq,
            codec.written(entry.event).decode(),
            entry.outcome,
            entry.state_before,
            entry.state_after,
            entry.version,
            entry.at.astimezone(UTC),
            entry.cause.model_dump_json() if entry.cause else None,
            entry.deadline,
        )
        for chat_id, entry in changes.entries
    ]
    calls = [
        (
            stored.call.chat_id,
            stored.call.call_id,
            stored.call.order,
            call_to_json(stored.call),
            stored.call.asked_at,
            stored.answer.is_error if stored.answer else None,
            to_json(stored.answer.result).decode() if stored.answer else None,
        )
        for stored in changes.calls
    ]
    outgoing = [
        (o.chat_id, o.lane, o.subject, o.message_id, o.version, o.due, o.payload)
        for o in changes.outgoing
    ]
    tables = ((chats, 8), (entries, 10), (changes.identities, 2), (calls, 7), (outgoing, 7))
    return [column for rows, width in tables for column in columns(rows, width)]


def seldom(changes: Changes) -> list[tuple[str, Sequence[tuple[Any, ...]]]]:
    """Return (statement, rows) of the tables that few batches write."""
    return [
        (
            "write_jobs",
            [
                (job.build_id, job.chat_id, job.subject, job.payload, job.not_after)
                for job in changes.jobs
            ],
        ),
        ("write_cancellations", changes.cancellations),
        ("write_names", changes.names),
        ("free_names", changes.freed),
    ]


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Turn rows into the arrays that `unnest` takes."""
    return [[row[n] for row in rows] for n in range(width)]
