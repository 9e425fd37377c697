"""Log entries as `read_events` and exports show them: a shape of its own, whoever keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from statemachine.codec import timestamp
from statemachine.messages import Cause, LogEntry, LoggedEvent


def shown(
    row: Mapping[str, Any], event: Mapping[str, Any], cause: Mapping[str, Any] | None
) -> LogEntry:
    """Return an entry as the world sees it; `cause`, `deadline` and `notice` stand in it where it has them.

    The notice is stored as an attribute of the event that it is about.
    """
    deadline: datetime | None = row["deadline"]
    notice = event.get("notice")
    logged = {name: value for name, value in event.items() if name != "notice"}
    entry: LogEntry = {
        "seq": row["seq"],
        "event": cast(LoggedEvent, logged),
        "outcome": row["outcome"],
        "state_before": row["state_before"],
        "state_after": row["state_after"],
        "version": row["version"],
        "at": timestamp(row["at"]),
    }
    if cause is not None:
        entry["cause"] = cast(Cause, cause)
    if deadline is not None:
        entry["deadline"] = timestamp(deadline)
    if notice is not None:
        entry["notice"] = notice
    return entry
