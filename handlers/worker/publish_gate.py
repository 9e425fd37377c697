"""Whether it was looked, since the last reconnect, what streams may have lost."""

from __future__ import annotations

import asyncio

from bus import Unavailable


class Certainty:
    """Nothing is published without it: what fills up a lost tail would hide that it was lost."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.there.set()
        self.lost = 0
        """How often there was a reconnect."""

    def lose(self) -> None:
        """Note a reconnect."""
        self.lost += 1
        self.there.clear()

    def check(self) -> None:
        """Raise Unavailable without it."""
        if not self.there.is_set():
            raise Unavailable("the connection was lost meanwhile")
