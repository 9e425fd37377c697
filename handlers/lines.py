"""What a log line must be: who may write to a build's log may write there what is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_TEXTS: Final = ("stage", "level", "output")
_ORIGINS: Final = ("provisioner", "agent")


def read_line(message: bytes, build_id: str) -> dict[str, Any] | None:
    """Return the data of a log_appended of that build, or None when it holds what can't be of one."""
    envelope = read_envelope(message)
    line = envelope.get("data") if envelope else None
    sound = (
        isinstance(line, dict)
        and line.get("build_id", build_id) == build_id
        and line.get("origin", "agent") in _ORIGINS
        and type(line.get("sequence", 0)) is int
        and all(isinstance(line.get(key, ""), str) for key in _TEXTS)
    )
    return line if sound else None


def is_whole(line: Mapping[str, Any]) -> bool:
    """Say whether a line has all that a line must have."""
    return line.keys() >= {"build_id", "origin", "sequence", *_TEXTS}


def read_envelope(message: bytes) -> dict[str, Any] | None:
    """Return a message's JSON object, or None when it is none."""
    try:
        envelope = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return envelope if isinstance(envelope, dict) else None


def read_shown(subject: str, message: bytes) -> dict[str, Any] | None:
    """Return what came on a chat's ui subject: a state of the server's, or a log line that is one."""
    *_, what, last = subject.split(".")
    envelope = read_envelope(message)
    if envelope is None:
        return None
    if what == "log" and ((line := read_line(message, last)) is None or not is_whole(line)):
        return None
    return {**envelope, "type": "workspaced.log_appended.v1"} if what == "log" else envelope
