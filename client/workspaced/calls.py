"""A call of a tool: waiting for its answer, following what happens meanwhile, and canceling it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import suppress
from typing import Any, Final

from workspaced import subjects
from workspaced.errors import CallConflict, NotFound, TooBusy
from workspaced.following import Follower
from workspaced.models import Answer, Log, State
from workspaced.processes import TOOLS, run_tool
from workspaced.service import Answers, Service

_BUSY: Final = "too busy: "
_GRACE: Final = 5.0
"""Seconds after which a call that no worker knows is taken for one that nobody asked."""


def _unheard(waiting: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
    """Run a wait in a task; its error concerns only who awaits the call, and asyncio does not log it."""
    task = asyncio.create_task(waiting)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class Call:
    """One call. `await` it for its answer; iterate over it to follow the chat until it is answered.

    The call is stored by workspaced: it outlives this process. To go on waiting in another process, ask
    again with the same `call_id`, or use `Workspaced.call`.
    """

    def __init__(
        self,
        service: Service,
        chat_id: str,
        call_id: str,
        request: dict[str, Any] | None,
        traceparent: str | None = None,
    ) -> None:
        self.chat_id, self.call_id = chat_id, call_id
        self._service, self._connection = service, service.connection
        self._request, self._traceparent = request, traceparent
        self._results: Answers | None = None
        self._waiting: asyncio.Task[Answer] | None = None

    async def ask(self) -> None:
        """Listen for the answer, and store the request. Raises Refused, Invalid, Unavailable.

        Tools that run in the workspace are asked by rpc; nothing of them is stored.
        """
        if self._request is not None and self._request["tool"] in TOOLS:
            body = {**self._request, "chat_id": self.chat_id}
            tool = body.pop("tool")
            self._waiting = _unheard(run_tool(self._connection, tool, body))
            return
        self._results = await self._service.answers(self.chat_id, self.call_id)
        try:
            await self._store_request()
        except BaseException:
            self._service.forget(self.chat_id, self.call_id, self._results)
            raise
        self._waiting = _unheard(self._wait())

    async def _store_request(self) -> None:
        request = self._request or {}
        await self._service.store_event(self.chat_id, "tool_requested", request, self._traceparent)

    async def _wait(self) -> Answer:
        """Return the answer; after each reconnect ask again, since it may have been missed."""
        results = self._results or await self._service.answers(self.chat_id, self.call_id)
        try:
            event = None if self._request is not None else await self._answer_elsewhere(results)
            while event is None:
                message = await results.next()
                if message is not None:
                    event = json.loads(message.data)
                elif self._request is not None:
                    await self._store_request()
                else:
                    event = await self._answer_elsewhere(results)
        finally:
            self._service.forget(self.chat_id, self.call_id, results)
        answer = Answer.model_validate(event["data"])
        if answer.is_error and str(answer.result.get("error", "")).startswith(_BUSY):
            raise TooBusy(f"{answer.result['error']}; ask again later with a new call_id", answer)
        if answer.conflict and self._request is not None:
            raise CallConflict(
                f"call_id {self.call_id!r} was used in this chat with another tool or other arguments: "
                "use a new call_id for each tool call",
                answer,
            )
        return answer

    async def _answer_elsewhere(self, results: Answers) -> Any:
        """Return the answer of a call that is not asked again here; None: it is open.

        Raises NotFound if it is neither open nor answered, also after a worker had the time to read it.
        """
        for last_try in (False, True):
            if (event := await self._stored_answer()) is not None:
                return event
            chat = await self._connection.rpc("get_chat", {"chat_id": self.chat_id})
            if self.call_id in [call["call_id"] for call in chat["open_calls"]]:
                return None
            if not last_try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_GRACE):
                        message = await results.next()
                    if message is not None:
                        return json.loads(message.data)
        if (event := await self._stored_answer()) is not None:  # answered between the two questions
            return event
        raise NotFound(
            f"call {self.call_id!r} of chat {self.chat_id} is neither open nor answered in the last 24 "
            "hours: ask again with `chat.call` and the same call_id"
        )

    async def _stored_answer(self) -> Any:
        return await self._connection.last(subjects.last_result(self.chat_id, self.call_id))

    async def stored_answer(self) -> Answer | None:
        """Return the answer if the call is answered already; do not wait. Raises Refused, Unavailable."""
        event = await self._stored_answer()
        return None if event is None else Answer.model_validate(event["data"])

    def _answering(self) -> asyncio.Task[Answer]:
        if self._waiting is None:
            self._waiting = _unheard(self._wait())
        return self._waiting

    def __await__(self) -> Generator[Any, None, Answer]:
        """Wait for the answer. Raises CallConflict, TooBusy, NotFound, Refused, Unavailable."""
        return asyncio.shield(self._answering()).__await__()

    async def __aiter__(self) -> AsyncIterator[State | Log]:
        """Yield the present state, then states and log until the call is answered, each once."""
        follower = await Follower.start(self._connection, self.chat_id)
        answering = self._answering()
        try:
            async for event in follower.events(until=answering):
                yield event
            build = None
            if answering.done() and answering.exception() is None:
                build = answering.result().result.get("build_id")
            for event in await follower.rest(build):
                yield event
        finally:
            await follower.stop()

    async def cancel(self, *, build: bool = False, reason: str | None = None) -> bool:
        """End the wait of the call; with `build`, cancel the chat's build in flight instead, if there is one.

        Return False if the call is answered already. Otherwise it is answered: after the cancel of a build when the
        build has ended, and if its request comes later (within 10 minutes), as soon as it comes. `reason` becomes a
        part of the message of the build's failure. Raises Refused, Unavailable.
        """
        if build:
            body = {"chat_id": self.chat_id, "reason": reason}
            if (await self._connection.rpc("cancel_build", body))["canceled"]:
                return True
        body = {"chat_id": self.chat_id, "call_id": self.call_id}
        return bool((await self._connection.rpc("cancel", body))["canceled"])

    async def close(self) -> None:
        """Stop waiting in this process; the call itself goes on."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])
