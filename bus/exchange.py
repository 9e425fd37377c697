"""Requests that are sent side by side over NATS, with one future for all their replies."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Sequence

Reply = tuple[bytes, bytes]
"""The data and the headers of the reply to a request."""


class Exchange:
    """Requests that were sent side by side, and their replies."""

    def __init__(self, subjects: Sequence[str]) -> None:
        self.subjects = subjects
        self.results: list[Reply | Exception | None] = [None] * len(subjects)
        """For each request its reply, its error, or None as long as it has neither."""
        self.timer: asyncio.TimerHandle
        self._missing = len(subjects)
        self._wanted = 0
        self._waiter: Future[None] | None = None

    def put(self, number: int, result: Reply | Exception) -> None:
        """Store the reply to a request, or its error; the first one counts."""
        if self.results[number] is not None:
            return
        self.results[number] = result
        self._missing -= 1
        if self._missing <= self._wanted and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Store the error for all requests without a reply."""
        for number in range(len(self.results)):
            self.put(number, error)

    async def wait(self, missing: int) -> None:
        """Wait until at most that many replies are missing."""
        if self._missing > missing:
            self._wanted = missing
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def watch(self, timeout: float) -> None:
        """Fail all requests without a reply as soon as none has come for `timeout` seconds."""
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(timeout, self._check, self._missing, timeout)

    def _check(self, missing: int, timeout: float) -> None:
        if self._missing == missing:
            first = self.subjects[self.results.index(None)] if missing else ""
            self.fail(TimeoutError(f"no answer from {first}"))
        else:
            self.watch(timeout)
