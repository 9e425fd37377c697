"""What a subscriber reads from: messages in the order in which they came."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from bus import Message, Unavailable
from bus.clock import Timer

log = logging.getLogger(__name__)

MOST: Final = 65_536
"""How many messages may wait for a reader before the newest are dropped."""

Later = Callable[[float, Callable[[], None]], Timer]
"""Calls something after so many seconds: the loop's `call_later`, or a clock's."""


class Inbox:
    """A subscription's messages, for one reader."""

    def __init__(self, subject: str, later: Later | None = None) -> None:
        self._subject = subject
        self._later: Later = later or asyncio.get_running_loop().call_later
        self._messages: deque[Message] = deque()
        self._awaited: Future[None] | None = None
        self._closed = False
        self._dropping = False

    def put(self, message: Message, _status: str = "") -> None:
        """Add a message, and wake the reader."""
        if len(self._messages) >= MOST:
            if not self._dropping:
                log.error("a reader of %s is too slow: it misses messages", self._subject)
            self._dropping = True
            return
        self._dropping = False
        self._messages.append(message)
        self._wake(None)

    def close(self, _why: object = None) -> None:
        """Let the reader know that no more will come."""
        self._closed = True
        self._wake(None)

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            yield await self.next()

    async def next(self, timeout: float | None = None) -> Message:  # noqa: ASYNC109  # the port's
        """Return the next message."""
        if self._messages:
            return self._messages.popleft()
        timer = None
        if timeout is not None:
            late = TimeoutError(f"no message on {self._subject} in {timeout} s")
            timer = self._later(timeout, lambda: self._wake(late))
        try:
            while not self._messages:
                if self._closed:
                    raise Unavailable("the bus is closed")
                self._awaited = asyncio.get_running_loop().create_future()
                await self._awaited
            return self._messages.popleft()
        finally:
            self._awaited = None
            if timer is not None:
                timer.cancel()

    def _wake(self, error: Exception | None) -> None:
        if self._awaited is None or self._awaited.done():
            return
        if error is None:
            self._awaited.set_result(None)
        else:
            self._awaited.set_exception(error)
