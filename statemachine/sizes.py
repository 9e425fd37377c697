"""Keeping an event below the size that the bus takes, measured as JSON: there a control character is six bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

from pydantic_core import to_json

Data = TypeVar("Data", bound=Mapping[str, Any])
MOST: Final = 960 * 1024
"""Bytes of an event's data: the bus takes 1 MiB, with the envelope and headers."""
_END_COUNTS: Final = frozenset({"error", "message", "output", "reason", "agent_error"})
"""Keys of texts whose end says most."""
_CUT: Final = _END_COUNTS | {"detail", "description", "display_name", "readme", "update_reason"}
"""Keys of texts for people, which may be cut; all others mean something to programs."""


def cut(text: str, most: int, *, keep_end: bool = False) -> str:
    """Return the longest beginning, or end, of `text` that takes at most `most` bytes as JSON."""
    if _size(text) <= most:
        return text
    low, high = 0, min(len(text), max(most, 0))
    while low < high:
        middle = (low + high + 1) // 2
        piece = text[-middle:] if keep_end else text[:middle]
        low, high = (middle, high) if _size(piece) <= most else (low, middle - 1)
    return text[len(text) - low :] if keep_end else text[:low]


def fit(data: Data, most: int = MOST) -> Data:
    """Return `data` with its longest texts for people cut, all to one length, until it fits into `most` bytes.

    What can't be made to fit by that is returned as small as it gets.
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
