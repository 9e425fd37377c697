"""Makes untrusted text safe to print: no escape sequence in it reaches the terminal."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_CSI: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
"""Whole CSI sequences. Of other sequences only the control characters are removed."""
_UNSEEN: Final = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    r"\ufff9-\ufffb\ud800-\udfff"
)
"""Control characters, characters that change the writing direction or end a line, surrogates."""
_CONTROLS: Final = re.compile(f"[{_UNSEEN}]")
_IN_JSON: Final = re.compile(r"[\x7f-\x9f" + _UNSEEN[len(r"\x00-\x08\x0b-\x1f\x7f-\x9f") :] + "]")
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode
"""One encoder for all lines; `json.dumps` would make one for each."""


def plain(text: str) -> str:
    """Remove from a text everything that a terminal would interpret, except newlines and tabs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", _CSI.sub("", text))


def as_json(found: Any, *, indent: int | None = None) -> str:
    """Return JSON in which characters that a terminal would interpret are escaped."""
    text = (
        _ENCODE(found) if indent is None else json.dumps(found, indent=indent, ensure_ascii=False)
    )
    return _IN_JSON.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
