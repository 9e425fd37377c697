"""Recognizes UUIDs.

Messages must use the canonical form; tool arguments may also use capitals and surrounding blanks.
"""

from __future__ import annotations

import re
from typing import Final

_CANONICAL: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_canonical(text: str) -> bool:
    """Return whether `text` is a UUID in lower-case canonical form, with nothing around it."""
    return _CANONICAL.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """Return whether `text` is a UUID; capitals and surrounding blanks are allowed."""
    return is_canonical(text.strip().lower())
