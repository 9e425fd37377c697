"""Hides the values of sensitive parameters in the texts that a provisioner publishes.

It hides the spellings that the contract names. The server's mask (`statemachine.mask`) hides more, and faster, with a
library that the client does not depend on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

MASK: Final = "***"
SHORTEST: Final = 4
"""Characters of the shortest text that is hidden; of shorter values nothing is."""


class Mask:
    """Replaces each value, each of its lines and each element of a list, in any usual spelling."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        parts = {part for value in values for part in _parts(value)}
        found = {text for part in parts for text in _spellings(part) if len(text) >= SHORTEST}
        longest_first = sorted(found, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if found else None

    def __call__(self, text: str) -> str:
        """Return the text with the values masked."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)


def _parts(value: str) -> set[str]:
    parts = set()
    for whole in (value, *_elements(value)):
        lines = whole.splitlines()
        parts |= {whole, whole.strip(), *lines, *(line.strip() for line in lines)}
        parts |= {" ".join(lines).strip(), " ".join(whole.split())}
    return {part for part in parts if len(part) >= SHORTEST and not part.isspace()}


def _elements(value: str) -> Iterator[str]:
    if not value.lstrip().startswith("["):
        return
    try:
        rest = [json.loads(value)]
    except (ValueError, RecursionError):
        return
    while rest:
        item = rest.pop()
        if isinstance(item, list):
            rest += item
        elif isinstance(item, str):
            yield item


def _spellings(part: str) -> Iterator[str]:
    yield part
    for ascii_only in (True, False):
        as_json = json.dumps(part, ensure_ascii=ascii_only)[1:-1]
        yield as_json
        yield as_json.replace("/", "\\/")
        yield json.dumps(as_json)[1:-1]
    yield repr(part)[1:-1]
    yield ascii(part)[1:-1]
    yield repr(part.encode(errors="replace"))[2:-1]
    for written in (
        quote(part, errors="replace"),
        quote(part, safe="", errors="replace"),
        quote_plus(part, errors="replace"),
    ):
        yield written
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), written)
