"""Read subscriptions: the queue of messages and reconnects behind each, and a loop that keeps one up."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, NoReturn, Protocol

from bus import Bus
from bus.errors import Backoff, BusError, Unavailable
from bus.messages import Message

log = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 65_536
"""How many messages may wait for the reader before new ones are dropped."""


class Timer(Protocol):
    """A scheduled call, for example an asyncio.TimerHandle."""

    def cancel(self) -> None:
        """Prevent the call."""
        ...


CallLater = Callable[[float, Callable[[], None]], Timer]
"""Calls a function after a number of seconds: the event loop's `call_later`, or a test clock's."""


class MessageQueue:
    """The messages of one subscription, for one reader; see `bus.Subscription`."""

    def __init__(self, subject: str, call_later: CallLater | None = None) -> None:
        self._subject = subject
        self._call_later: CallLater = call_later or asyncio.get_running_loop().call_later
        self._items: deque[Message | None] = deque()
        """None stands for a reconnect."""
        self._waiter: Future[None] | None = None
        self._closed = False
        self._dropping = False

    def put(self, message: Message, _status: str = "") -> None:
        """Add a message and wake the reader."""
        if len(self._items) >= QUEUE_LIMIT:
            if not self._dropping:
                log.error("the reader of %s is too slow: dropping messages", self._subject)
            self._dropping = True
            return
        self._dropping = False
        self._items.append(message)
        self._wake()

    def put_reconnect(self) -> None:
        """Record that the connection was lost and is back."""
        if not self._items or self._items[-1] is not None:
            self._items.append(None)
            self._wake()

    def close(self, _reason: object = None) -> None:
        """Raise Unavailable in the reader once the queue is empty."""
        self._closed = True
        self._wake()

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            yield await self.next()

    async def next(self, timeout: float | None = None) -> Message:  # noqa: ASYNC109  # the port's
        """Return the next message."""
        timer = None
        if timeout is not None and not any(self._items):
            late = TimeoutError(f"no message on {self._subject} within {timeout} s")
            timer = self._call_later(timeout, lambda: self._wake(late))
        try:
            while (message := await self.next_or_reconnect()) is None:
                pass
            return message
        finally:
            if timer is not None:
                timer.cancel()

    async def next_or_reconnect(self) -> Message | None:
        """Return the next message, or None after a reconnect."""
        try:
            while not self._items:
                if self._closed:
                    raise Unavailable("the bus is closed")
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            return self._items.popleft()
        finally:
            self._waiter = None

    def _wake(self, error: Exception | None = None) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if error is None:
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(error)


async def call_on_message(
    bus: Bus, subject: str, callback: Callable[[], object], backoff: Backoff
) -> NoReturn:
    """Call `callback` for each message on `subject`, until cancelled; subscribe again after errors."""
    while True:
        try:
            async with bus.subscribe(subject) as messages:
                async for _ in messages:
                    callback()
        except BusError as error:
            log.info("can't subscribe to %s: %s", subject, error)
        await backoff.wait()
