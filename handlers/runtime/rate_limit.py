"""Limits how many requests one address may send without a valid token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

RATE: Final = 20.0
"""Requests per second that one address may send for long."""
BURST: Final = 100
"""Requests that one address may send at once."""
ADDRESSES: Final = 1024
"""Addresses whose requests are counted; the address that was silent longest is forgotten first."""
TOO_MANY: Final = "this address sent too many requests without a valid token; try again in a second"
"""The text of the answer to a request beyond the limit."""


class RateLimiter:
    """A token bucket for each address, for a limited number of addresses."""

    def __init__(
        self,
        now: Callable[[], float],
        rate: float = RATE,
        burst: int = BURST,
    ) -> None:
        self._now, self._rate, self._burst = now, rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str) -> bool:
        """Count a request; return whether the address may send it now."""
        now = self._now()
        tokens = self._left(address, now)
        allowed = tokens >= 1
        self._buckets.pop(address, None)
        self._buckets[address] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return allowed

    def allows(self, address: str) -> bool:
        """Return whether the address may send a request now, without counting it."""
        return self._left(address, self._now()) >= 1

    def _left(self, address: str, now: float) -> float:
        tokens, since = self._buckets.get(address, (float(self._burst), now))
        return min(self._burst, tokens + (now - since) * self._rate)
