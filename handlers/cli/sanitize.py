"""Text of others on its way to a terminal: nothing in it that a terminal would obey."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_COMMANDS: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
"""What would colour, move or clear, whole; of other sequences the words stay to be read."""
_UNSEEN: Final = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    r"\ufff9-\ufffb\ud800-\udfff"
)
"""Controls, what turns the direction of writing or ends a line, and halves of characters."""
_CONTROLS: Final = re.compile(f"[{_UNSEEN}]")
_IN_JSON: Final = re.compile(r"[\x7f-\x9f" + _UNSEEN[len(r"\x00-\x08\x0b-\x1f\x7f-\x9f") :] + "]")
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Made once; `json.dumps` would make one for each line."""


def plain(text: str) -> str:
    """Return a text with nothing in it that a terminal would obey: builds write what they like."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", _COMMANDS.sub("", text))


def as_json(found: Any, *, indent: int | None = None) -> str:
    """Write JSON that means exactly what was found, and that a terminal shows as it is."""
    text = (
        _ENCODE(found) if indent is None else json.dumps(found, indent=indent, ensure_ascii=False)
    )
    return _IN_JSON.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
