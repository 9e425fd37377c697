"""What a log line must be: who may write to a build's log may write there what is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_TEXTS: Final = ("stage", "level", "output")
_ORIGINS: Final = ("provisioner", "agent")


def read_line(message: bytes, build_id: str) -> dict[str, Any] | None:
    """Return the data of a log_appended of that build, or None when it holds what can't be of one.

    It is read as leniently as other data: a key that is null is absent, and 2.0 is an integer.
    """
    envelope = read_envelope(message)
    data = envelope.get("data") if envelope else None
    if not isinstance(data, dict):
        return None
    line = {key: value for key, value in data.items() if value is not None}
    if line.get("build_id") == "":
        del line["build_id"]
    number = line.get("sequence")
    if isinstance(number, float) and number.is_integer():
        line["sequence"] = int(number)
    sound = (
        line.get("build_id", build_id) == build_id
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
    if what != "log":
        return envelope
    line = read_line(message, last)
    if line is None or not is_whole(line):
        return None
    return {**envelope, "type": "workspaced.log_appended.v1", "data": line}
