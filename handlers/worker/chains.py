"""Groups states to be published by chat, and divides the groups into atomic batches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bus import BATCH_LIMIT
from statemachine.store import OutboxMessage


def chains_of(rows: Iterable[OutboxMessage]) -> list[list[OutboxMessage]]:
    """Return one chain for each chat: its states, the oldest version first."""
    chains: dict[str, list[OutboxMessage]] = {}
    for row in sorted(rows, key=lambda row: row.version or 0):
        chains.setdefault(row.subject, []).append(row)
    return list(chains.values())


def parts_of(chains: Iterable[Sequence[OutboxMessage]]) -> Iterator[list[Sequence[OutboxMessage]]]:
    """Yield groups of chains that each fit into one atomic batch.

    No chain may have more than BATCH_LIMIT states.
    """
    part: list[Sequence[OutboxMessage]] = []
    size = 0
    for chain in chains:
        if part and size + len(chain) > BATCH_LIMIT:
            yield part
            part, size = [], 0
        part.append(chain)
        size += len(chain)
    if part:
        yield part
