"""Keeps events below the maximum size of a NATS message.

Sizes are measured as JSON, in which a control character has six bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

from pydantic_core import to_json

Data = TypeVar("Data", bound=Mapping[str, Any])
LONGEST_DATA: Final = 960 * 1024
"""Maximum size of an event's data in bytes. NATS accepts 1 MiB, including the envelope and
headers."""
_END_COUNTS: Final = frozenset({"error", "message", "output", "reason", "agent_error"})
"""Keys of texts whose end is the most informative part."""
_CUT: Final = _END_COUNTS | {"detail", "description", "display_name", "readme", "update_reason"}
"""Keys of texts for people, which may be cut. Programs use the other texts, so they are never
cut."""


def cut(text: str, most: int, *, keep_end: bool = False) -> str:
    """Return the longest beginning (or end) of `text` that has at most `most` bytes as JSON."""
    if _size(text) <= most:
        return text
    low, high = 0, min(len(text), max(most, 0))
    while low < high:
        middle = (low + high + 1) // 2
        piece = text[-middle:] if keep_end else text[:middle]
        low, high = (middle, high) if _size(piece) <= most else (low, middle - 1)
    return text[len(text) - low :] if keep_end else text[:low]


def fit(data: Data, most: int = LONGEST_DATA) -> Data:
    """Return `data` with its texts for people cut so that it has at most `most` bytes as JSON.

    All texts are cut to the same maximum length, the largest one with which the data fits. If it
    does not fit even without these texts, it is returned without them.
    """
    if len(to_json(data)) <= most:
        return data
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(to_json(_shortened(data, middle))) <= most
        low, high = (middle, high) if fits else (low, middle - 1)
    return cast("Data", _shortened(data, low))


def _shortened(value: Any, most: int, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(item, most, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item, most, key) for item in value]
    if isinstance(value, str) and key in _CUT:
        return cut(value, most, keep_end=key in _END_COUNTS)
    return value


def _size(text: str) -> int:
    return len(to_json(text)) - 2
