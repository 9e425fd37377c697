"""A chat in words for people: its changes as they come, and as a whole. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from handlers.cli.output import indented, local_time, one_line
from handlers.cli.sanitize import plain

Data = Mapping[str, Any]
SETTLED: Final = ("ready", "failed", "stopped", "none")
"""States that only somebody's wish or a late fact ends."""
TITLES: Final = ("CHAT", "STATE", "WORKSPACE", "BUILD", "AGENT", "NOTE")


def described(envelope: Data) -> list[str]:
    """Put a state change or a piece of log into lines; all but the first are indented."""
    data = envelope["data"]
    if _is_log(envelope):
        return [f"  | {line}" for line in plain(data["output"]).splitlines()]
    at = datetime.fromisoformat(envelope["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    first, *more = _shown(data)
    return [f"{at}  {first}", *(f"{'':{len(at)}}  {text}".rstrip() for text in more)]


@dataclass(slots=True)
class Describing:
    """Describes what comes of one chat; a change of what is not shown gives no line."""

    _last: list[str] = field(default_factory=list)

    def lines(self, envelope: Data) -> list[str]:
        """Return the lines of the next state change or piece of log."""
        if not _is_log(envelope):
            now = _shown(envelope["data"])
            if now == self._last:
                return []
            self._last = now
        return described(envelope)


def _is_log(envelope: Data) -> bool:
    return str(envelope["type"]).startswith("workspaced.log_appended")


def _shown(data: Data) -> list[str]:
    line = str(data["state"])
    if data["agent"] is not None:
        line += f"  (agent {one_line(data['agent']['name'])}: {data['agent']['status']})"
    if data["failure"] is None:
        return [line]
    first, *more = indented(data["failure"]["message"], "") or [""]
    return [f"{line}  {data['failure']['reason']}: {first}", *more]


def row(data: Data) -> tuple[str, ...]:
    """Return a chat as a row under TITLES."""
    failure = data["failure"]
    return (
        data["chat_id"],
        state_of(data),
        workspace_of(data),
        build_of(data),
        "-" if data["agent"] is None else f"{data['agent']['name']} {data['agent']['status']}",
        data.get("notice") or (failure["message"] if failure else ""),
    )


def about(data: Data) -> list[tuple[str, str]]:
    """Return all that `get_chat` tells of a chat, as names and values."""
    pairs = [("chat", data["chat_id"]), ("state", f"{state_of(data)}, version {data['version']}")]
    if data["workspace"] is not None:
        pairs += [("workspace", f"{workspace_of(data)}  {data['workspace']['id']}")]
        pairs += [("template", data["workspace"]["template_id"] or "not known here")]
    if data["build"] is not None:
        begun = local_time(data["build"]["started_at"])
        pairs += [("build", f"{build_of(data)}, since {begun}  {data['build']['id']}")]
    if (agent := data["agent"]) is not None:
        lifecycle = f", {agent['lifecycle']}" if agent["lifecycle"] else ""
        pairs += [("agent", f"{agent['name']}: {agent['status']}{lifecycle}")]
    if data["failure"] is not None:
        code = data["failure"].get("error_code")
        message = data["failure"]["message"]
        pairs += [("failure", f"{code}: {message}" if code else message)]
    if data["deadline"] is not None:
        pairs += [("deadline", local_time(data["deadline"]))]
    if "notice" in data:
        pairs += [("notice", data["notice"])]
    calls = [
        f"{call['tool']}, since {local_time(call['asked_at'])}  {call['call_id']}"
        for call in data["open_calls"]
    ]
    pairs += [("open calls", "\n".join(calls) or "none")]
    if data["cause"] is not None:
        pairs += [("last cause", f"{data['cause']['type']} from {data['cause']['source']}")]
    return pairs


def state_of(data: Data) -> str:
    """Return the state, and of what kind it is when it is `failed`."""
    return f"failed: {data['failure']['reason']}" if data["failure"] else str(data["state"])


def workspace_of(data: Data) -> str:
    """Return `<owner>/<name>`."""
    workspace = data["workspace"]
    return "-" if workspace is None else f"{workspace['owner_name'] or '?'}/{workspace['name']}"


def build_of(data: Data) -> str:
    """Return the build's number and what it does."""
    build = data["build"]
    return "-" if build is None else f"{build['number']} {build['transition']}"
