"""A chat service on its connection: it stores events, and receives the answers to its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from workspaced import subjects
from workspaced.connection import Connection, Subscription
from workspaced.errors import WorkspacedError
from workspaced.events import cloud_event
from workspaced.nats_py import Msg


class Answers:
    """Answers to one call in the order of arrival; None stands for a reconnect.

    A chat service may hold very many calls, so this is smaller than a queue of asyncio.
    """

    __slots__ = ("_arrived", "_items")

    def __init__(self) -> None:
        self._items: list[Msg | Exception | None] = []
        self._arrived: asyncio.Future[None] | None = None

    def put(self, item: Msg | Exception | None) -> None:
        """Add an answer, a reconnect, or the error with which the connection ended."""
        self._items.append(item)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def next(self) -> Msg | None:
        """Wait for an answer; None: the connection was lost and is back. Raises WorkspacedError."""
        while not self._items:
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        item = self._items[0]
        if isinstance(item, Exception):
            raise item  # every later call fails too
        del self._items[0]
        return item


class Service:
    """A chat service with the name `name`.

    All its calls share one subscription to answers. One for each call would have to be confirmed by the server before
    the request is published, and would cost more than all the rest of a short call.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name = connection, name
        self._waiting: dict[str, list[Answers]] = {}
        """The waits for answers, by the subject of each answer."""
        self._distributing: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    async def store_event(
        self,
        chat_id: str,
        type_name: str,
        data: Mapping[str, Any],
        traceparent: str | None = None,
    ) -> str:
        """Publish an event about a chat until it is stored; return its id. Raises Refused, Invalid, Unavailable."""
        event = cloud_event(type_name, f"/chat/{self.name}", chat_id, data, traceparent)
        await self.connection.store(subjects.request(chat_id, self.name), event)
        return str(event["id"])

    async def answers(self, chat_id: str, call_id: str) -> Answers:
        """Receive the answers to a call from now on, until `forget`. Raises Refused, Unavailable."""
        async with self._opening:
            if self._distributing is None or self._distributing.done():
                every = await self.connection.subscribe(subjects.ALL_RESULTS)
                self._distributing = asyncio.create_task(self._distribute(every))
        answers = Answers()
        self._waiting.setdefault(subjects.result(chat_id, call_id), []).append(answers)
        return answers

    def forget(self, chat_id: str, call_id: str, answers: Answers) -> None:
        """Receive the answers no longer that `answers` returned."""
        subject = subjects.result(chat_id, call_id)
        waiting = self._waiting[subject]
        waiting.remove(answers)
        if not waiting:
            del self._waiting[subject]

    async def _distribute(self, every: Subscription) -> None:
        """Hand each answer to who waits for it; reconnects and the end of the connection concern all of them."""
        while True:
            try:
                message = await every.next()
            except WorkspacedError as error:
                self._tell_all(error)
                return
            if message is None:
                self._tell_all(None)
            else:
                for answers in self._waiting.get(message.subject, ()):
                    answers.put(message)

    def _tell_all(self, item: Exception | None) -> None:
        for waiting in self._waiting.values():
            for answers in waiting:
                answers.put(item)

    async def close(self) -> None:
        """Close the connection; everything that waits raises Unavailable."""
        await self.connection.close()
        if self._distributing is not None:
            await asyncio.wait([self._distributing])
