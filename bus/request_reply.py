"""Requests over one connection: one inbox for all answers, and a prompt end to each wait."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count

from bus import Message, Refused
from bus.connection import Connection, fail

Answer = Future[tuple[Message, str]]
"""An answer with its status, once it has come."""


class Requests:
    """What one connection asked and has no answer to yet."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._inbox = f"{connection.new_inbox()}."
        self._asked: dict[str, tuple[str, Answer]] = {}
        self._tokens = count(1)

    async def open(self) -> None:
        """Subscribe to where answers come."""
        await self.connection.take(f"{self._inbox}*", self._take)
        self.connection.on_denied.append(self._denied)

    async def ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, within: float
    ) -> tuple[Message, str]:
        """Send a request, and return its answer with the answer's status.

        Raises Refused, TimeoutError, Unavailable.
        """
        with self.asking(subject, within) as (reply, answer):
            self.connection.post(subject, data, headers, reply)
            return await answer

    @contextmanager
    def asking(self, subject: str, within: float) -> Iterator[tuple[str, Answer]]:
        """Give the reply subject and the answer of one request, for as long as it is awaited."""
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        token = str(next(self._tokens))
        self._asked[token] = (subject, answer)
        self.connection.waiting.add(answer)
        timer = loop.call_later(within, _late, answer, subject)
        try:
            yield self._inbox + token, answer
        finally:
            timer.cancel()
            del self._asked[token]
            self.connection.waiting.discard(answer)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # perhaps nobody awaits it any more

    def _take(self, message: Message, status: str) -> None:
        asked = self._asked.get(message.subject.rpartition(".")[2])
        if asked is not None and not asked[1].done():
            asked[1].set_result((message, status))

    def _denied(self, subject: str, refusal: Refused) -> bool:
        if subject == f"{self._inbox}*".lower():
            for _, answer in self._asked.values():
                fail(answer, refusal)
            return True
        for token, (asked, answer) in self._asked.items():
            # One denial, one request: the oldest.
            if subject in (asked.lower(), f"{self._inbox}{token}".lower()) and not answer.done():
                answer.set_exception(refusal)
                return True
        return False


def _late(answer: Answer, subject: str) -> None:
    fail(answer, TimeoutError(f"no answer from {subject}"))
