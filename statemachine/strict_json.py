"""Parses inbound JSON that can be stored, or says why the message is a dead letter.

`parse` refuses JSON that PostgreSQL cannot store. `salvage` replaces the parts that cannot be
stored and parses the rest, for facts, which must not be lost because of a faulty detail.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

from pydantic_core import from_json

MAX_DEPTH: Final = 32
"""Maximum nesting of objects and lists in an inbound event."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_UNTELLABLE: Final = re.compile("[\0\ud800-\udfff]")
"""The characters that cannot be stored: NUL and lone surrogates."""
_STRUCTURE: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
"""Matches whole texts and single brackets. It never backtracks, so it takes linear time."""


class RejectReason(StrEnum):
    """Why a message is a dead letter (docs/contract.md, section 1)."""

    NOT_JSON = "not_json"
    NOT_CLOUDEVENTS = "not_cloudevents"
    BAD_TYPE = "bad_type"
    BAD_SOURCE = "bad_source"
    BAD_DATA = "bad_data"
    CHAT_MISMATCH = "chat_mismatch"
    TOO_LARGE = "too_large"
    INTERNAL = "internal"


class Reject(ValueError):
    """A message cannot be accepted and becomes a dead letter."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def parse(data: bytes, *, stored: bool = True) -> object:
    """Parse `data`. A byte order mark at its beginning is ignored.

    If an object contains a key twice, the last value counts. Raises Reject if `data` is not JSON,
    or is JSON that cannot be stored. Texts of what is not `stored` may contain NUL.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        reason = RejectReason.BAD_DATA if _is_json(data) else RejectReason.NOT_JSON
        raise Reject(reason, str(error)) from None
    # JSON can contain NUL only as this escape, so the texts of most messages need no look.
    problem = _unstorable(body, may_contain_nul=stored and b"\\u0000" in data)
    if problem is not None:
        raise Reject(RejectReason.BAD_DATA, problem)
    return body


def salvage(data: bytes) -> tuple[object, dict[tuple[str | int, ...], str]]:
    """Parse a message that `parse` refuses, and replace what cannot be stored in its member `data`.

    Return the document, and a description of each change by its path below `data`. In texts, NUL,
    lone surrogates and bytes that are not UTF-8 become U+FFFD; control characters are kept. Numbers
    beyond the range of a double and values that are nested too deep become null. Raises Reject if
    the message is not JSON even then.
    """
    changed: dict[tuple[str | int, ...], str] = {}
    text = data.removeprefix(_BYTE_ORDER_MARK).decode(errors="replace")
    shallow = _shallow(text)
    read = json.JSONDecoder(strict=False, parse_int=_number, parse_float=_number).decode
    try:
        body = read(shallow)
    except (ValueError, RecursionError) as error:
        raise Reject(RejectReason.NOT_JSON, str(error)) from None
    if isinstance(body, dict) and isinstance(body.get("data"), dict):
        body["data"] = _kept(body["data"], (), changed)
    whole = []
    if "\ufffd" in text and not _is_utf_8(data):
        whole.append("bytes that are no UTF-8 were replaced by U+FFFD")
    if shallow != text:
        whole.append(f"what is nested deeper than {MAX_DEPTH} was left out")
    return body, ({(): "; ".join(whole)} if whole else {}) | changed


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def storable(text: str) -> bool:
    """Return whether a text contains neither NUL nor lone surrogates nor U+FFFD.

    U+FFFD shows that `salvage` has replaced a character.
    """
    return _UNTELLABLE.search(text) is None and "\ufffd" not in text


def _shallow(text: str) -> str:
    """Replace all objects and lists that are nested too deep by null."""
    pieces: list[str] = []
    depth = done = 0
    for found in _STRUCTURE.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                pieces += (text[done : found.start()], "null")
        elif found[0] in "]}":
            depth -= 1
            if depth == MAX_DEPTH:
                done = found.end()
    # If closing brackets are missing, the rest does not matter: the text is not JSON anyway.
    return "".join(pieces) + (text[done:] if depth <= MAX_DEPTH else "")


def _number(text: str) -> float | int:
    """Parse a number. A number beyond the range of a double becomes infinite."""
    value = float(text)
    whole = math.isfinite(value) and not set(text) & set(".eE")
    return int(text) if whole else value


def _kept(value: Any, place: tuple[str | int, ...], changed: dict[Any, str]) -> Any:
    """Return a value with the parts replaced that cannot be stored, and add them to `changed`.

    `value` must not be nested too deep.
    """
    where = "data" + "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in place)
    if isinstance(value, dict):
        named = {_UNTELLABLE.sub("\ufffd", key): item for key, item in value.items()}
        return {key: _kept(item, (*place, key), changed) for key, item in named.items()}
    if isinstance(value, list):
        return [_kept(item, (*place, n), changed) for n, item in enumerate(value)]
    if isinstance(value, str) and _UNTELLABLE.search(value):
        changed[place] = f"{where} contains what no store can hold: replaced by U+FFFD"
        return _UNTELLABLE.sub("\ufffd", value)
    if isinstance(value, float) and not math.isfinite(value):
        changed[place] = f"{where} is not a number that a double holds: left out"
        return None
    return value


def _is_json(data: bytes) -> bool:
    """Return whether `data` has valid JSON syntax, also if it cannot be stored."""
    try:
        json.loads(data.decode(), parse_int=str, parse_constant=_no_constant)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _unstorable(body: object, *, may_contain_nul: bool) -> str | None:  # noqa: C901 — one flat walk
    """Return why a value cannot be stored, or None if it can. The walk uses no recursion."""
    todo: list[tuple[Iterable[object], int]] = [((body,), 0)]
    while todo:
        values, depth = todo.pop()
        if depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH}"
        for value in values:
            if isinstance(value, str):
                if may_contain_nul and "\0" in value:
                    return "a text contains NUL"
            elif isinstance(value, dict):
                todo.append((value.values(), depth + 1))
                if may_contain_nul and any("\0" in key for key in value):
                    return "a key contains NUL"
            elif isinstance(value, list):
                todo.append((value, depth + 1))
            elif isinstance(value, float):
                if not math.isfinite(value):
                    return "a number is beyond what a double holds"
            elif isinstance(value, int) and value.bit_length() > 1023:  # noqa: PLR2004 — the exponent range of a double
                return "a number is beyond what a double holds"
    return None
