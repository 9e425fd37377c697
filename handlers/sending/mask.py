"""Keeps secrets out of text that others read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

STARS: Final = "***"


class Mask:
    """Replaces secrets in a text that comes in pieces, also one that is cut by their border."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: a secret that contains another one is replaced as a whole.
        self.secrets: Final = tuple(sorted({s for s in secrets if s}, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.secrets))) if self.secrets else None
        self._held = ""

    def whole(self, text: str) -> str:
        """Return a complete text without its secrets."""
        return self._pattern.sub(STARS, text) if self._pattern else text

    def feed(self, text: str) -> str:
        """Return what can be shown now; the start of what may become a secret is held back."""
        if not self._pattern:
            return text
        text = self._held + text
        safe = len(text) - self._open_end(text)
        shown, position = [], 0
        for found in self._pattern.finditer(text):
            if found.start() >= safe:
                break
            shown += [text[position : found.start()], STARS]
            position = found.end()
        end = max(safe, position)
        self._held = text[end:]
        shown.append(text[position:end])
        return "".join(shown)

    def close(self) -> str:
        """Return what was held back, when nothing follows it."""
        rest, self._held = self._held, ""
        return self.whole(rest)

    def _open_end(self, text: str) -> int:
        """Count the characters at the end that are the start of a secret."""
        longest = len(self.secrets[0]) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(len(secret) > length and secret.startswith(end) for secret in self.secrets):
                return length
        return 0
