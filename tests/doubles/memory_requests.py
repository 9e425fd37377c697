"""Subscriptions, requests and replies of one in-memory bus."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Mapping
from typing import Any, Final

from bus import Message, NoResponder, Responder, Unavailable, services
from tests.doubles.memory_server import Interest, MemoryServer

_BROKE: Final = "the connection broke; it may have arrived"


class MemoryRequests:
    """The subscriptions of one bus, and its requests in progress."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._interests: list[Interest] = []
        self._asked: dict[Future[Message], None] = {}
        self._breaks = 0
        """How many times the connection was lost."""
        self._tasks = services.Tasks()

    def listen(self, subject: str, queue: str, take: Callable[[Message], None]) -> Interest:
        """Call `take` with each message of the subject."""
        interest = Interest(subject, queue, take)
        self._interests.append(interest)
        self._server.interests.append(interest)
        return interest

    def unlisten(self, interest: Interest) -> None:
        """End the subscription."""
        if interest in self._interests:
            self._interests.remove(interest)
            self._server.interests.remove(interest)

    def unlisten_all(self) -> None:
        """End all subscriptions, as a closed connection does."""
        for interest in list(self._interests):
            self.unlisten(interest)

    async def ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, within: float
    ) -> Message:
        """Send a request; return the reply.

        Raises NoResponder, ServiceError, TimeoutError, Unavailable.
        """
        reply = f"_INBOX.{next(self._server.numbers)}"
        answer: Future[Message] = asyncio.get_running_loop().create_future()
        late = TimeoutError(f"no answer from {subject}")
        timer = self._server.clock.call_later(within, lambda: _fail(answer, late))
        interest = self.listen(reply, "", lambda message: _succeed(answer, message))
        self._asked[answer] = None
        try:
            if not self._server.deliver(Message(subject, data, dict(headers or {}), reply)):
                raise NoResponder(f"nobody serves {subject}")
            message = await answer
        finally:
            timer.cancel()
            self._asked.pop(answer, None)
            self.unlisten(interest)
        services.raise_service_error(message.headers)
        return message

    async def ask_many(self, subject: str, data: bytes, within: float) -> list[Message]:
        """Send a request; return all replies that come in time."""
        reply = f"_INBOX.{next(self._server.numbers)}"
        over: Future[Message] = asyncio.get_running_loop().create_future()
        found: list[Message] = []
        interest = self.listen(reply, "", found.append)
        end = Message(reply, b"")
        timer = self._server.clock.call_later(within, lambda: _succeed(over, end))
        self._asked[over] = None
        try:
            if self._server.deliver(Message(subject, data, {}, reply)):
                await over
        finally:
            timer.cancel()
            self._asked.pop(over, None)
            self.unlisten(interest)
        return found

    def answer(self, subject: str, queue: str, responder: Responder) -> None:
        """Reply to requests; send no reply when the responder raises."""

        async def work(message: Message) -> None:
            data = await services.plain_reply(responder, message)
            if data is not None:
                self._reply(message, (data, None))

        self.listen(subject, queue, lambda message: self._tasks.spawn(work(message)))

    def answer_as_service(self, subject: str, responder: Responder) -> None:
        """Reply to requests as a micro service does."""

        async def work(message: Message) -> None:
            self._reply(message, await services.service_reply(responder, message))

        self.listen(subject, services.QUEUE, lambda message: self._tasks.spawn(work(message)))

    async def travel(self) -> None:
        """Wait for one way to the server. Raises Unavailable if the connection breaks."""
        breaks = self._breaks
        await self._server.turn()
        if self._breaks != breaks:
            raise Unavailable(_BROKE)

    def fail_all(self) -> None:
        """Fail all requests in progress, because the connection broke."""
        self._breaks += 1
        for answer in self._asked:
            _fail(answer, Unavailable(_BROKE))

    async def cancel(self) -> None:
        """Cancel the requests that are being processed."""
        await self._tasks.cancel()

    def _reply(self, message: Message, reply: services.Reply) -> None:
        if message.reply and self._server.up:
            self._server.deliver(Message(message.reply, reply[0], reply[1] or {}))


def _succeed(future: Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
