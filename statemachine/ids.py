"""What counts as an id: of the product in one spelling only, in a tool's arguments as people write it."""

from __future__ import annotations

import re
from typing import Final

_CANONICAL: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_canonical(text: str) -> bool:
    """Say whether it is a UUID as the product spells it: no capitals, nothing around it."""
    return _CANONICAL.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """Say whether it is a UUID, in capitals or not, with or without blanks around it."""
    return is_canonical(text.strip().lower())
