"""Following a chat: its present state first, then what happens; the log from its first line, nothing twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Final

from workspaced import subjects
from workspaced.connection import Connection, Subscription
from workspaced.errors import Unavailable
from workspaced.models import Log, State
from workspaced.nats_py import Msg

_STORED_AT: Final = "Nats-Time-Stamp"
_ATTEMPTS: Final = 10
"""How often a page of the log is asked for, with growing pauses, before only new lines are shown."""


class Follower:
    """States and log lines of one chat."""

    def __init__(
        self,
        connection: Connection,
        chat_id: str,
        subscription: Subscription,
        *,
        old_log: bool,
    ) -> None:
        self._connection, self._chat_id, self._subscription = connection, chat_id, subscription
        self._ended_before: str | None = None
        """The build that had ended before, of which nobody wants the log."""
        self._old_log = old_log
        self._version = -1
        self._seen: set[tuple[str, str, int, int]] = set()
        self._cursors: dict[str, int | None] = {}
        """The builds that are followed, and where to go on reading the log of each."""

    @classmethod
    async def start(
        cls, connection: Connection, chat_id: str, *, old_log: bool = False
    ) -> Follower:
        """Subscribe to a chat. Raises Refused, Unavailable.

        `old_log`: also the log of a build that had ended before.
        """
        names = (subjects.ui_state(chat_id), subjects.ui_logs(chat_id))
        return cls(connection, chat_id, await connection.subscribe(*names), old_log=old_log)

    async def stop(self) -> None:
        """End the subscription."""
        await self._connection.unsubscribe(self._subscription)

    async def events(self, until: asyncio.Future[Any] | None = None) -> AsyncIterator[State | Log]:
        """Yield the present state, and then all that is new, until `until` is done."""
        for event in await self._present(first=True):
            yield event
        while until is None or not until.done():
            item = asyncio.ensure_future(self._subscription.next())
            try:
                await asyncio.wait(
                    [item] if until is None else [item, until], return_when=asyncio.FIRST_COMPLETED
                )
                if not item.done():
                    return
                message = item.result()
            finally:
                item.cancel()
            if message is None:
                for event in await self._present(first=False):
                    yield event
            elif (one := self._new(message)) is not None:
                yield one

    async def rest(self, build_id: str | None) -> list[State | Log]:
        """Return what was stored and not yielded yet, also of the log of `build_id`."""
        if build_id is not None:
            self._cursors.setdefault(build_id, None)
        left: list[State | Log] = []
        while not self._subscription.queue.empty():
            with suppress(Unavailable):
                message = await self._subscription.next()
                if message is not None and (one := self._new(message)) is not None:
                    left.append(one)
                continue
            break
        with suppress(Unavailable):
            left += await self._present(first=False)
        return left

    async def _present(self, *, first: bool) -> list[State | Log]:
        event = await self._connection.last(subjects.last_state(self._chat_id))
        unknown = {"data": {"chat_id": self._chat_id, "version": 0, "state": "none"}}
        state = read_state(unknown if event is None else event)
        found: list[State | Log] = []
        if state.version > self._version:
            self._version = state.version
            found.append(state)
        if state.build is not None:
            if first and state.settled and not self._old_log:
                self._ended_before = state.build.id
            if state.build.id != self._ended_before:
                self._cursors.setdefault(state.build.id, None)
        for build_id in list(self._cursors):
            found += await self._stored_lines(build_id)
        return found

    async def _stored_lines(self, build_id: str) -> list[State | Log]:
        lines: list[State | Log] = []
        attempt = 0
        while True:
            body = {
                "chat_id": self._chat_id,
                "build_id": build_id,
                "after": self._cursors[build_id],
            }
            try:
                page = await self._connection.rpc("read_log", body)
            except Unavailable:
                attempt += 1
                if attempt >= _ATTEMPTS:
                    return lines
                await asyncio.sleep(0.1 * attempt)  # back-off
                continue
            lines += [one for one in map(self._line, page["lines"]) if one is not None]
            if "next" not in page:
                return lines
            self._cursors[build_id] = page["next"]

    def _new(self, message: Msg) -> State | Log | None:
        if not message.subject.endswith(".state"):
            try:
                line = json.loads(message.data)["data"]
                return self._line({**line, "build_id": message.subject.rpartition(".")[2]})
            except (ValueError, TypeError, LookupError):
                return None  # any process in a workspace may publish anything on its log subject
        state = read_state(json.loads(message.data), message.headers or {})
        if state.version <= self._version:
            return None
        self._version = state.version
        if state.build is not None and not state.settled:
            self._cursors.setdefault(state.build.id, None)
        return state

    def _line(self, data: dict[str, Any]) -> Log | None:
        line = Log.model_validate(data)
        # Agents of one build number their lines each for itself, so the text belongs to the identity.
        identity = (line.build_id, line.origin, line.sequence, hash(line.output))
        if line.sequence > 0 and identity in self._seen:
            return None
        self._seen.add(identity)
        return line


def read_state(event: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> State:
    """Return the state that an event of workspaced carries."""
    about = {"time": event.get("time"), "stored_at": (headers or {}).get(_STORED_AT)}
    return State.model_validate({**event["data"], **about, "data": event["data"]})
