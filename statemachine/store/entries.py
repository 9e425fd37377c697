"""Log entries as `read_events` and exports show them: a shape of its own, whoever keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from statemachine.codec import timestamp


def shown(
    row: Mapping[str, Any], event: Mapping[str, Any], cause: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return an entry as the world sees it; `cause` and `deadline` stand in it where it has them."""
    deadline: datetime | None = row["deadline"]
    return {
        "seq": row["seq"],
        "event": event,
        "outcome": row["outcome"],
        "state_before": row["state_before"],
        "state_after": row["state_after"],
        "version": row["version"],
        "at": timestamp(row["at"]),
        **({} if cause is None else {"cause": cause}),
        **({} if deadline is None else {"deadline": timestamp(deadline)}),
    }
