"""State changes and log lines of a chat as text for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from handlers.cli.output import indented, one_line, plain

Envelope = Mapping[str, Any]
SETTLED: Final = ("ready", "failed", "stopped", "none")
"""States that last until a new request, or a late fact, arrives."""


def describe(envelope: Envelope) -> list[str]:
    """Return the lines for a state change or a piece of log."""
    data = envelope["data"]
    if _is_log(envelope):
        return [f"  | {line}" for line in plain(data["output"]).splitlines()]
    at = datetime.fromisoformat(envelope["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    first, *more = _state_lines(data)
    return [f"{at}  {first}", *(f"{'':{len(at)}}  {text}".rstrip() for text in more)]


@dataclass(slots=True)
class ChangeDescriber:
    """Describes the messages of one chat, but only state changes that change the text."""

    _last: list[str] = field(default_factory=list)

    def lines(self, envelope: Envelope) -> list[str]:
        """Return the lines for the next message, which may be none."""
        if not _is_log(envelope):
            lines = _state_lines(envelope["data"])
            if lines == self._last:
                return []
            self._last = lines
        return describe(envelope)


def workspace_name(chat: Mapping[str, Any]) -> str:
    """Return `<owner>/<name>` of a chat's workspace."""
    workspace = chat["workspace"]
    return "-" if workspace is None else f"{workspace['owner_name'] or '?'}/{workspace['name']}"


def _is_log(envelope: Envelope) -> bool:
    return str(envelope["type"]).startswith("workspaced.log_appended")


def _state_lines(chat: Mapping[str, Any]) -> list[str]:
    line = str(chat["state"])
    if chat["agent"] is not None:
        line += f"  (agent {one_line(chat['agent']['name'])}: {chat['agent']['status']})"
    if chat["failure"] is None:
        return [line]
    first, *more = indented(chat["failure"]["message"], "") or [""]
    return [f"{line}  {chat['failure']['reason']}: {first}", *more]
