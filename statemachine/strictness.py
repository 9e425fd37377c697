"""JSON that can be kept: what came over the wire, parsed, or the reason why it is a dead letter."""

from __future__ import annotations

import json
import math
import re
from enum import StrEnum
from typing import Final

from pydantic_core import from_json

MAX_DEPTH: Final = 32
"""Nesting of an inbound event."""


_SUSPECT: Final = re.compile(rb"\\u0000|\d[\d.]{299}|[\s:,\[]-?\d[\d.]*[eE]\+?\d\d")
"""Without one of these no text holds NUL, and no number is beyond a double."""


class Reason(StrEnum):
    """Why a message is a dead letter (contract §1)."""

    NOT_JSON = "not_json"
    NOT_CLOUDEVENTS = "not_cloudevents"
    BAD_TYPE = "bad_type"
    BAD_SOURCE = "bad_source"
    BAD_DATA = "bad_data"
    CHAT_MISMATCH = "chat_mismatch"
    TOO_LARGE = "too_large"
    INTERNAL = "internal"


class Reject(ValueError):
    """The message is a dead letter."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def parse(data: bytes) -> object:
    """Parse `data`. Raises Reject when it is no JSON, or JSON that no store can hold."""
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as bad:
        reason = Reason.BAD_DATA if _is_json(data) else Reason.NOT_JSON
        raise Reject(reason, str(bad)) from None
    # Else there is nothing to be found, and the walk costs more than all the rest.
    suspect = _SUSPECT.search(data) or data.count(b"[") + data.count(b"{") > MAX_DEPTH
    if suspect and (problem := _unstorable(body)):
        raise Reject(Reason.BAD_DATA, problem)
    return body


def _is_json(data: bytes) -> bool:
    """Say whether it is JSON by the letter, though no store can hold it."""
    try:
        json.loads(data.decode(), parse_int=str, parse_constant=_no_constant)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _unstorable(body: object) -> str | None:  # noqa: C901 — one flat walk
    """Say what no store can hold, walking without recursion."""
    todo: list[tuple[object, int]] = [(body, 1)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, str):
            if "\0" in value:
                return "a text contains NUL"
        elif isinstance(value, float):
            if not math.isfinite(value):
                return "a number is beyond what a double holds"
        elif isinstance(value, int):
            if value.bit_length() > 1023:  # noqa: PLR2004 — the exponent range of a double
                return "a number is beyond what a double holds"
        elif isinstance(value, list | dict):
            if depth > MAX_DEPTH:
                return f"nested deeper than {MAX_DEPTH}"
            if isinstance(value, dict):
                if any("\0" in key for key in value):
                    return "a key contains NUL"
                value = value.values()
            todo.extend((item, depth + 1) for item in value)
    return None
