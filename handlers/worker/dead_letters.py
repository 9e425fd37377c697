"""What a dead letter says of itself, beside the body that came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from handlers.worker.deliveries import DETAIL_LIMIT, Dead

LETTER_LIMIT: Final = 1_000_000
"""Bytes of a dead letter's body and the headers that came with it: the server takes 1 MiB."""


def headers_of(letter: Dead) -> dict[str, str]:
    """Return a letter's headers; those that came with it stand in one, so that none of them acts."""
    return {
        "Workspaced-Subject": letter.subject,
        "Workspaced-Reason": str(letter.rejected.reason),
        "Workspaced-Detail": letter.rejected.detail[:DETAIL_LIMIT],
        "Workspaced-Headers": _fitting(letter.headers, LETTER_LIMIT - len(letter.data)),
    }


def _fitting(headers: Mapping[str, str], room: int) -> str:
    """Write headers as JSON; what would make the letter larger than any message may be is left out."""
    kept: dict[str, str] = {}
    for name, value in headers.items():
        size = len(json.dumps({name: value}, ensure_ascii=False).encode())
        if size <= room:
            kept[name] = value
            room -= size
    return json.dumps(kept, ensure_ascii=False)
