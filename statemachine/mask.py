"""Hides secrets in texts: finds the spellings of a secret value, and replaces them by the mask.

A `Mask` replaces secrets in every text that workspaced shows: logs of builds and scripts, failures,
states, answers and the event log. A spelling is the value itself or one of its parts (a line, or an
element of a list), possibly trimmed or with other line ends, either unchanged or escaped as in
JSON, in JSON within JSON, in Python's repr, in a URL, in a shell or in HTML, or encoded as base64 or
as hexadecimal digits.
"""

from __future__ import annotations

import base64
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

MASK: Final = "***"
"""The text that replaces a secret."""
SHORTEST: Final = 4
"""Minimum number of characters of a hidden text. Hiding shorter texts would make logs
unreadable."""

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
"""Characters that some JSON encoders escape although the standard does not require it -> the
escape."""
_URL_SAFE: Final = (
    "",
    "/",
    "!'()*",  # JavaScript's encodeURIComponent
    "!$&'()*+,;=:",  # user names and passwords of URLs
    "!$&'()*+,;=:@/?",  # queries and fragments
    "!$&'()*+,;=:@/?#",  # JavaScript's encodeURI
)
"""Sets of characters that different URL encoders leave unescaped, besides letters, digits and
`_.-~`."""
_SHELL_SPECIAL: Final = re.compile(r"""[ \t!"$&'()*,;<>?\[\\\]^`{|}]|^[#~]""")
"""The characters that bash's `printf %q` writes with a backslash."""
_HTML_ESCAPES: Final[tuple[dict[str, str], ...]] = (
    {},  # outside of attributes
    {'"': "&quot;"},
    {'"': "&quot;", "'": "&#x27;"},  # Python
    {'"': "&quot;", "'": "&#39;"},
    {'"': "&#34;", "'": "&#39;"},  # Go
    {'"': "&quot;", "'": "&apos;"},  # XML
    {'"': "&quot;", "'": "&#39;", "/": "&#x2F;", "`": "&#x60;", "=": "&#x3D;"},  # Mustache
)
"""Entities that different encoders use for characters besides `&`, `<` and `>`."""
_ENCODED_UP_TO: Final = 8_192
"""Maximum number of characters of a value whose base64 and hexadecimal forms are hidden.

All forms of a longer value with many lines would take seconds to prepare.
"""
_BASE64_COLUMNS: Final = (76, 64)
"""Columns at which `base64` and `openssl` break lines."""
_HEX_COLUMNS: Final = (60,)
"""The column at which `xxd -p` breaks lines."""
_CANDIDATES: Final = 1_000
"""Maximum number of possible beginnings of a spelling that `open_end` compares.

It treats the next possible beginning as a real one without a comparison.
"""


def hidden_parts(value: str) -> set[str]:
    """Return the parts of a secret value that must be hidden: itself, its lines and list elements.

    Parts that are blank or shorter than SHORTEST are not hidden.
    """
    given: set[str] = set()
    changed: set[str] = set()
    for whole in (value, *_elements(value)):
        lines = _LINE_ENDS.split(whole)
        given |= {whole, *lines, *whole.splitlines()}
        if len(lines) > 1 and len(whole.strip()) >= SHORTEST:
            changed |= {end.join(lines) for end in _JOINED_BY}
    changed |= {" ".join(part.split()) for part in given}  # as a shell prints it without quotes
    parts = {part.strip() for part in given | changed}
    # Keep the untrimmed form only of parts that would be too short when trimmed. All other
    # untrimmed parts contain their trimmed form, which is hidden.
    parts |= {part for part in given if len(part.strip()) < SHORTEST}
    return {part for part in parts if len(part) >= SHORTEST and not part.isspace()}


def is_short(value: str) -> bool:
    """Return whether a value, or a text in the list that it is, is too short to be hidden."""
    texts = _elements(value) or ([] if _is_empty_list(value) else [value])
    return any(len(text.strip()) < SHORTEST for text in texts)


def _is_empty_list(value: str) -> bool:
    """Return whether a value is an empty JSON array, which has nothing to hide."""
    return re.fullmatch(r"\s*\[\s*\]\s*", value) is not None


def spellings(value: str, longest: float = math.inf) -> set[str]:
    """Return all texts that must be hidden so that no part of a secret value can be read.

    `longest` is the length in characters of the longest text that will be masked. A spelling is
    never shorter than its part, so the spellings of longer parts are not needed. The exceptions are
    the lines of a long encoded part.
    """
    found: set[str] = set()
    for part in hidden_parts(value):
        if len(value) <= _ENCODED_UP_TO:
            found.update(text for text in _encoded_forms(part) if len(text) <= longest)
        if len(part) > longest:
            continue
        found.add(part)
        lines = [line.strip() for line in part.splitlines()]
        # The escaped form of several lines contains the escaped form of each line, which is hidden
        # by itself unless the line is too short.
        if len(lines) == 1 or any(0 < len(line) < SHORTEST for line in lines):
            found.update(_as_json(part))
            found.update(_as_repr(part))
            found.update(_in_url(part))
            found.update(_in_shell(part))
            found.update(_in_html(part))
    return found


def _elements(value: str) -> list[str]:
    """Return the texts in a JSON array, at any depth; an empty list if `value` is not one."""
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
        yield json.dumps(plain)[1:-1]  # within JSON
    yield re.sub(r"\\u[0-9a-f]{4}", lambda found: rf"\u{found[0][2:].upper()}", plain)


def _as_repr(text: str) -> Iterator[str]:
    """Yield the forms of `text` in Python literals.

    A single quote is escaped or not, depending on the rest of the literal.
    """
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


def _in_shell(text: str) -> Iterator[str]:
    for quote_ in ("'\\''", "'\"'\"'"):
        yield text.replace("'", quote_)
    for special in ('["\\\\$`]', '["\\\\$`!]'):
        yield re.sub(special, r"\\\g<0>", text)
    yield _SHELL_SPECIAL.sub(r"\\\g<0>", text)


def _in_html(text: str) -> Iterator[str]:
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for entities in _HTML_ESCAPES:
        yield plain.translate({ord(character): entity for character, entity in entities.items()})


def _encoded_forms(text: str) -> Iterator[str]:
    """Yield the base64 and hexadecimal forms of a text, wherever it stands in what was encoded.

    In base64, each character holds six bits, so there are three forms, depending on the number of
    bytes in front. Characters that also depend on other bytes are left out.
    """
    raw = _encoded(text)
    alone = [base64.b64encode(end).decode().rstrip("=") for end in (raw, raw + b"\n")]
    digits = [raw.hex(), raw.hex().upper()]
    texts = [*alone, *digits]
    for whole, columns in ((alone, _BASE64_COLUMNS), (digits, _HEX_COLUMNS)):
        texts += [line for column in columns for one in whole for line in _wrapped(one, column)]
    for before in range(3):
        bits = 8 * (before + len(raw))
        encoded = base64.b64encode(bytes(before) + raw).decode()
        texts.append(encoded[-(-8 * before // 6) : bits // 6])
    for encoded in texts:
        yield encoded
        yield encoded.replace("+", "-").replace("/", "_")


def _wrapped(text: str, column: int) -> list[str]:
    """Return the lines of a wrapped text, without lines that are too short to be hidden."""
    lines = [text[at : at + column] for at in range(0, len(text), column)]
    return [line for line in lines if len(line) >= 2 * SHORTEST]


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


class Mask:
    """Replaces each spelling of the given secret values, in time linear in the length of the text.

    The mask is shorter than any spelling, so a text never gets longer.
    """

    def __init__(self, values: Iterable[str] = (), *, longest: float = math.inf) -> None:
        """Prepare a mask for texts of at most `longest` characters; a lower number costs less."""
        self.values: Final = tuple(dict.fromkeys(values))
        """The secret values, each once."""
        found = {spelling for value in self.values for spelling in spellings(value, longest)}
        self._spellings = sorted(found)
        self._heads = frozenset(spelling[:SHORTEST] for spelling in found)
        self._longest = max(map(len, found), default=0)
        self._finder = BytesAhoCorasick(
            [_encoded(spelling) for spelling in self._spellings],
            MatchKind.LeftmostLongest,
            Implementation.NoncontiguousNFA,  # the implementation that is built in linear time
        )

    def whole(self, text: str) -> str:
        """Return a complete text with its secrets masked."""
        return self.split(text, len(text))[0]

    def torn(self, masked: str) -> str:
        """Mask the beginning of a masked text, which may be the end of a secret that was cut."""
        return f"{MASK}{masked[max(0, self._longest - 1) :]}" if self._spellings else masked

    def split(self, text: str, safe: int) -> tuple[str, str]:
        """Return the text up to index `safe` with its secrets masked, and the rest unchanged.

        A spelling that begins before `safe` is replaced as a whole, also if it ends after `safe`.
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

    def first(self, text: str) -> int | None:
        """Return the index in a text at which its first secret begins; None if there is none."""
        raw = _encoded(text)
        found = self._finder.find_matches_as_indexes(raw)
        return len(_decoded(raw[: found[0][1]])) if found else None

    def open_end(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a spelling."""
        compared = 0
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            head = text[at : at + SHORTEST]
            if len(head) < SHORTEST or head in self._heads:
                compared += 1
                if compared > _CANDIDATES or self._begins(text[at:]):
                    return len(text) - at
        return 0

    def _begins(self, text: str) -> bool:
        """Return whether a spelling begins with `text` and is longer."""
        after = bisect_right(self._spellings, text)
        return after < len(self._spellings) and self._spellings[after].startswith(text)


class MaskedStream:
    """Masks a text that arrives in pieces. A secret may be split over several pieces."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._shown = ""
        """The end of what was returned, if it may be the beginning of a secret; see `release`."""
        self._held = ""

    @property
    def holds_little(self) -> bool:
        """Whether text is held back that may begin a secret, but is too short to be hidden itself."""
        return bool(self._held) and len(self._shown) + len(self._held) < SHORTEST

    def feed(self, text: str) -> str:
        """Add a piece; return the masked text up to what may be the beginning of a secret."""
        text = self._shown + self._held + text
        return self._take(text, len(text) - self._mask.open_end(text))

    def release(self) -> str:
        """Return what is held back, masked. If a later piece completes a secret, its rest is masked."""
        text = self._shown + self._held
        released = self._take(text, len(text))
        self._shown = text[len(text) - self._mask.open_end(text) :]
        return released

    def _take(self, text: str, safe: int) -> str:
        """Return the masked text up to index `safe`, without its beginning `self._shown`."""
        shown, self._shown = len(self._shown), ""
        masked, rest = self._mask.split(text, safe)
        first = self._mask.first(text) if shown else None
        if first is not None and first < min(shown, safe):
            self._held = rest
            return masked[first:]
        if safe < shown:
            self._shown, self._held = text[safe:shown], text[shown:]
            return ""
        self._held = rest
        return masked[shown:]


def _decoded(raw: bytes) -> str:
    return raw.decode(errors="surrogatepass")
