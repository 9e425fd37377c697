"""Who was not let in: counted, and logged with who it was and why."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from handlers.access.auth_protocol import WORDS, Visitor, Why
from handlers.clock import clock

log = logging.getLogger(__name__)
QUIET: Final = 60.0
"""Seconds in which the same refusal is counted, and not logged again: refused clients try for ever."""
REMEMBERED: Final = 1000


@dataclass(slots=True)
class Refusals:
    """Notes refusals; of the same visitor for the same reason one line a minute."""

    clock: Callable[[], float] = clock
    counts: Counter[Why] = field(default_factory=Counter)
    """Since the start, by reason."""
    _said: OrderedDict[tuple[str, str, Why], tuple[float, int]] = field(default_factory=OrderedDict)
    """When each was logged last, and how often it was not since."""

    def note(self, visitor: Visitor, why: Why) -> None:
        """Count a refusal, and log it unless it was just logged."""
        self.counts[why] += 1
        now, what = self.clock(), (visitor.key, visitor.address, why)
        at, left_out = self._said.pop(what, (now - QUIET, 0))
        if now - at < QUIET:
            self._said[what] = (at, left_out + 1)
            return
        self._said[what] = (now, 0)
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        log.warning(
            "not let in: %s (%s); key %r, called %r, %s from %s; %d such refusals, %d of them like "
            "this since it was last logged",
            why,
            WORDS[why],
            visitor.key,
            visitor.name,
            visitor.kind,
            visitor.address,
            self.counts[why],
            left_out + 1,
            extra={"why": str(why), "public_key": visitor.key, "address": visitor.address},
        )
