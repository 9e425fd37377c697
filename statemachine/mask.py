"""Hiding secrets in texts: the spellings of a secret value, and the mask that replaces them.

Every text that workspaced shows passes through one `Mask`: logs of builds and scripts, failures,
states, answers and the event log. A spelling is the value, one of its lines or list elements, trimmed
or with its line ends changed, as it is or as JSON, Python's repr and URLs write it.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

MASK: Final = "***"
"""What is shown in place of a secret."""
SHORTEST: Final = 4
"""Characters that a text must have to be hidden: hiding shorter ones would make logs unreadable."""

_LINE_ENDS: Final = re.compile(r"\r\n|\n|\r")
_JOINED_BY: Final = ("\n", "\r\n", "\r", " ")
_JSON_ESCAPES: Final = (
    ("/", "\\/"),  # PHP
    *(
        (characters, rf"\u{{:04{case}}}")
        for characters, case in (
            ("<>&", "x"),  # Go
            ("<>&='", "x"),  # Gson
            ("<>&'+`", "X"),  # .NET
        )
    ),
)
"""Characters that JSON writers escape though the standard lets them stand, and how."""
_URL_SAFE: Final = (
    "",
    "/",
    "!'()*",  # JavaScript's encodeURIComponent
    "!$&'()*+,;=:",  # user names and passwords of URLs
    "!$&'()*+,;=:@/?",  # queries and fragments
    "!$&'()*+,;=:@/?#",  # JavaScript's encodeURI
)
"""What different writers of URLs leave as it is, beside letters, digits and `_.-~`."""
_CANDIDATES: Final = 1_000
"""How many possible beginnings of a spelling are compared; the next one counts as a beginning."""


def hidden_parts(value: str) -> set[str]:
    """Return the texts of a secret value that nobody may read, in no particular order.

    They are empty for a value that is too short. Blank texts are no secrets.
    """
    given: set[str] = set()
    changed: set[str] = set()
    for whole in (value, *_elements(value)):
        lines = _LINE_ENDS.split(whole)
        given |= {whole, *lines, *whole.splitlines()}
        if len(lines) > 1 and len(whole.strip()) >= SHORTEST:
            changed |= {end.join(lines) for end in _JOINED_BY}
    changed |= {" ".join(part.split()) for part in given}  # as a shell writes it without quotes
    parts = {part.strip() for part in given | changed}
    # Only what is long enough by its blanks alone is looked for with them: all else contains its trimmed form.
    parts |= {part for part in given if len(part.strip()) < SHORTEST}
    return {part for part in parts if len(part) >= SHORTEST and not part.isspace()}


def is_short(value: str) -> bool:
    """Say whether a value, or a text in a list, is too short to be hidden in other texts."""
    texts = _elements(value) or ([] if _is_empty_list(value) else [value])
    return any(len(text.strip()) < SHORTEST for text in texts)


def _is_empty_list(value: str) -> bool:
    """Say whether a value is a JSON array with nothing in it: there is nothing to hide."""
    return re.fullmatch(r"\s*\[\s*\]\s*", value) is not None


def spellings(value: str, longest: float = math.inf) -> set[str]:
    """Return every text that must be hidden so that no part of a secret value can be read.

    `longest`: how many characters the texts have in which they are looked for. No part has a spelling
    that is shorter than the part itself, so longer parts need not be spelled.
    """
    found: set[str] = set()
    for part in hidden_parts(value):
        if len(part) > longest:
            continue
        found.add(part)
        lines = [line.strip() for line in part.splitlines()]
        # Escapes of several lines are covered by those of each line, unless a line is too short.
        if len(lines) == 1 or any(0 < len(line) < SHORTEST for line in lines):
            found.update(_as_json(part))
            found.update(_as_repr(part))
            found.update(_in_url(part))
    return found


def _elements(value: str) -> list[str]:
    """Return the texts in a JSON array, at any depth; none of what is not an array."""
    if not value.lstrip().startswith("["):
        return []
    try:
        rest = [json.loads(value)]
    except (ValueError, RecursionError):
        return []
    found: list[str] = []
    while rest:
        item = rest.pop()
        if isinstance(item, list):
            rest += item
        elif isinstance(item, str):
            found.append(item)
    return found


def _as_json(text: str) -> Iterator[str]:
    for ascii_only in (False, True):
        plain = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield plain
        for characters, escape in _JSON_ESCAPES:
            yield re.sub(
                f"[{re.escape(characters)}]",
                lambda found, escape=escape: escape.format(ord(found[0])),  # type: ignore[misc]
                plain,
            )
    yield re.sub(r"\\u[0-9a-f]{4}", lambda found: rf"\u{found[0][2:].upper()}", plain)


def _as_repr(text: str) -> Iterator[str]:
    """Yield what Python writes between the quotes; which quotes depends on the text around it."""
    for quoted in ("'", "\\'"):
        parts = text.split("'")
        yield quoted.join(repr(part)[1:-1] for part in parts)
        yield quoted.join(ascii(part)[1:-1] for part in parts)
        yield quoted.join(repr(_encoded(part))[2:-1] for part in parts)


def _in_url(text: str) -> Iterator[str]:
    for safe in _URL_SAFE:
        upper = quote(text, safe=safe, errors="replace")
        for written in (upper, re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), upper)):
            yield written
            yield written.replace("%20", "+")
    form = quote(text, safe="*", errors="replace").replace("%20", "+").replace("~", "%7E")
    yield form
    yield re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), form)


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


class Mask:
    """Replaces each spelling of some secret values in texts, in time linear in the text.

    What is put in its place is shorter than any spelling, so no text grows.
    """

    def __init__(self, values: Iterable[str] = (), *, longest: float = math.inf) -> None:
        """`longest`: how many characters a text may have; for short texts less has to be made ready."""
        self.values: Final = tuple(dict.fromkeys(values))
        """The secret values themselves."""
        found = {spelling for value in self.values for spelling in spellings(value, longest)}
        self._spellings = sorted(found)
        self._heads = frozenset(spelling[:SHORTEST] for spelling in found)
        self._longest = max(map(len, found), default=0)
        self._finder = BytesAhoCorasick(
            [_encoded(spelling) for spelling in self._spellings],
            MatchKind.LeftmostLongest,
            Implementation.NoncontiguousNFA,  # the one that is built in linear time
        )

    def whole(self, text: str) -> str:
        """Return a complete text without its secrets."""
        return self.split(text, len(text))[0]

    def torn(self, masked: str) -> str:
        """Return a masked text without the rest of a secret whose beginning was cut off before."""
        return f"{MASK}{masked[max(0, self._longest - 1) :]}" if self._spellings else masked

    def split(self, text: str, safe: int) -> tuple[str, str]:
        """Return the text without its secrets up to `safe`, and the rest of it as it is.

        A spelling that begins before `safe` is replaced even where it ends after it.
        """
        if not self._spellings:
            return text[:safe], text[safe:]
        raw = _encoded(text)
        most = len(raw) if safe == len(text) else len(_encoded(text[:safe]))
        shown, position = [], 0
        for _, start, end in self._finder.find_matches_as_indexes(raw):
            if start >= most:
                break
            shown += [raw[position:start], MASK.encode()]
            position = end
        most = max(most, position)
        shown.append(raw[position:most])
        return _decoded(b"".join(shown)), _decoded(raw[most:])

    def open_end(self, text: str) -> int:
        """Count the characters at the end of a text that may be the beginning of a spelling."""
        compared = 0
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            head = text[at : at + SHORTEST]
            if len(head) < SHORTEST or head in self._heads:
                compared += 1
                if compared > _CANDIDATES or self._begins(text[at:]):
                    return len(text) - at
        return 0

    def _begins(self, text: str) -> bool:
        """Say whether some spelling is longer than `text` and begins with it."""
        after = bisect_right(self._spellings, text)
        return after < len(self._spellings) and self._spellings[after].startswith(text)


class MaskedStream:
    """A text that comes in pieces, without its secrets, also where a piece ends inside one."""

    def __init__(self, mask: Mask) -> None:
        self._mask, self._held = mask, ""

    def feed(self, text: str) -> str:
        """Return what can be shown now; what may be the beginning of a secret is held back."""
        text = self._held + text
        shown, self._held = self._mask.split(text, len(text) - self._mask.open_end(text))
        return shown

    def close(self) -> str:
        """Return what was held back, when nothing follows it."""
        rest, self._held = self._held, ""
        return self._mask.whole(rest)


def _decoded(raw: bytes) -> str:
    return raw.decode(errors="surrogatepass")
