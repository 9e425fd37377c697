"""A command that runs in a chat's workspace: its output as it comes, its input, its end."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NamedTuple
from uuid import uuid4

from workspaced import subjects
from workspaced.connection import Connection
from workspaced.errors import CannotRun, Unavailable
from workspaced.models import Answer, Exit
from workspaced.nats_py import Msg

TOOLS: Final = frozenset(
    {
        "execute",
        "process_output",
        "process_input",
        "process_signal",
        "process_list",
        "read_file",
        "write_file",
        "edit_file",
        "list_files",
    }
)
"""The tools that the agent of a running workspace answers; they are not stored as calls."""
_WAIT: Final = 30
"""Seconds for which one request for output is held, at most."""
_MARGIN: Final = 20.0
"""Seconds beyond `wait_seconds` within which the gateway answers."""
_PATIENCE: Final = 40.0
"""Seconds for which a call is repeated that nobody answers, such as while an agent is restarted."""
_WHOLE: Final = 65536
"""Bytes below which the output in an answer of `execute` is never cut, whatever its characters cost in JSON."""
_AWAY: Final = 0.5
"""Seconds before the next request for output if the agent is away: then one is answered at once."""


async def run_tool(connection: Connection, tool: str, body: Mapping[str, Any]) -> Answer:
    """Call a tool of a running workspace; repeat it with the same `call_id` if nobody answers.

    Raises CallConflict, TooBusy, Refused, Invalid, Unavailable.
    """
    waits = body["args"].get("wait_seconds") or (10 if tool == "execute" else 0)
    until = time.monotonic() + _PATIENCE
    for attempt in itertools.count(1):
        try:
            return Answer.model_validate(
                await connection.rpc(tool, body, within=min(waits, 60) + _MARGIN)
            )
        except Unavailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(min(2.0, 0.1 * attempt))  # back-off
    raise AssertionError("the loop has no end")


class Piece(NamedTuple):
    """A piece of a command's output; one that begins after the end of the one before follows bytes that are not kept."""

    offset: int
    next: int
    output: str


class Process:
    """A command in a workspace. Iterate over it for its output; `wait` for its end."""

    def __init__(self, connection: Connection, chat_id: str, first: Mapping[str, Any]) -> None:
        self.id = str(first["exec_id"])
        """By this id another process finds the command again: `chat.process(id)`."""
        self._connection, self._chat_id, self._newest = connection, chat_id, dict(first)

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the output from its first byte, stdout and stderr as one, until the command has ended."""
        async for piece in self.pieces():
            yield piece.output

    async def pieces(self, after: int = 0) -> AsyncIterator[Piece]:
        """Yield the output from byte `after` until the command has ended, each byte once."""
        whole = self._whole_output()
        if whole is None:
            async with aclosing(self._followed(after)) as followed:
                async for piece in followed:
                    yield piece
        elif rest := whole.encode()[after:]:
            yield Piece(after, after + len(rest), rest.decode(errors="replace"))

    async def _followed(self, after: int) -> AsyncGenerator[Piece, None]:
        """Yield the output from byte `after` as it comes.

        What the agent publishes arrives first. The rpc has what was published before, what was left out, and the end.
        An agent that was killed answers no request; what its successor publishes shows that one can ask again.
        """
        published = await self._connection.subscribe(subjects.ui_exec(self._chat_id, self.id))
        asking: asyncio.Task[Mapping[str, Any]] | None = None
        hearing: asyncio.Task[Msg | None] | None = None
        try:
            while True:
                asking = asking or asyncio.create_task(self._output(after))
                hearing = hearing or asyncio.create_task(published.next())
                await asyncio.wait((asking, hearing), return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    piece = _published(hearing.result(), after)
                    hearing = None
                    if piece is not None and not piece.output:
                        continue  # a repeat
                    asking.cancel()
                    asking = None
                    if piece is not None:
                        after = piece.next
                        yield piece
                    continue
                answer = asking.result()
                asking = None
                if answer["output"]:
                    yield Piece(answer["offset"], answer["next"], answer["output"])
                elif answer["status"] == "exited" and answer["next"] <= after:
                    return
                after = answer["next"]
        finally:
            for task in (asking, hearing):
                if task is not None:
                    task.cancel()
            await self._connection.unsubscribe(published)

    def _whole_output(self) -> str | None:
        """Return the output if the command has ended and the newest answer holds all of it.

        Then an agent that has `execute` only is not asked for `process_output`.
        """
        answer = self._newest
        if answer["status"] != "exited" or answer.get("offset") != 0 or answer.get("dropped"):
            return None
        return str(answer["output"]) if answer["next"] < _WHOLE else None

    async def wait(self) -> Exit:
        """Wait for the end of the command. Raises CannotRun, Unavailable."""
        if self._newest["status"] == "running":
            async for _ in self.pieces(self._newest["next"]):
                pass
        return Exit.model_validate(self._newest)

    async def write(self, data: str | bytes) -> None:
        """Write all of `data` to the command's input, which `open_stdin` or `pty` keeps open."""
        rest = data.encode() if isinstance(data, str) else data
        while rest:
            piece = rest[:65536]
            args = {"data": base64.b64encode(piece).decode(), "encoding": "base64"}
            written = (await self._call("process_input", **args))["written"]
            rest = rest[written:]

    async def close_input(self) -> None:
        """Close the command's input."""
        await self._call("process_input", close=True)

    async def resize(self, columns: int, rows: int) -> None:
        """Change the size of the command's terminal."""
        await self._call("process_input", cols=columns, rows=rows)

    async def signal(self, name: str) -> bool:
        """Send a signal, such as `INT` or `TERM`; return whether anything was left to receive it."""
        return bool((await self._call("process_signal", signal=name))["signaled"])

    async def _output(self, after: int) -> Mapping[str, Any]:
        asked_at = time.monotonic()
        piece = await self._call("process_output", after=after, wait_seconds=_WAIT)
        if (
            piece["status"] == "running"
            and not piece["output"]
            and time.monotonic() - asked_at < _AWAY
        ):
            await asyncio.sleep(_AWAY)  # back-off
        if piece["next"] >= self._newest["next"]:
            self._newest = dict(piece)
        return piece

    async def _call(self, tool: str, **args: Any) -> dict[str, Any]:
        body = {
            "chat_id": self._chat_id,
            "call_id": uuid4().hex,
            "args": {"exec_id": self.id, **args},
        }
        return checked(await run_tool(self._connection, tool, body))


def _published(message: Msg | None, after: int) -> Piece | None:
    """Return what a published message adds to the output at byte `after`, empty for a repeat.

    None: the rpc has to tell, because the message is the command's end, a part before it is missing, or the
    connection to NATS was lost (no message).
    """
    if message is None:
        return None
    event = json.loads(message.data)
    data = event["data"]
    if event["type"].startswith("workspaced.exec_started."):
        return Piece(after, after, "")
    if not event["type"].startswith("workspaced.exec_output.") or data["offset"] > after:
        return None
    rest = data["output"].encode()[after - data["offset"] :]
    return Piece(after, max(after, data["next"]), rest.decode(errors="replace"))


def checked(answer: Answer) -> dict[str, Any]:
    """Return the result of a tool of a running workspace. Raises CannotRun if it is an error."""
    if answer.is_error:
        raise CannotRun(f"{answer.tool}: {answer.result['error']}", answer.result.get("next_step"))
    return answer.result


@asynccontextmanager
async def executing(
    connection: Connection, chat_id: str, call_id: str, args: Mapping[str, Any]
) -> AsyncIterator[Process]:
    """Start a command; at the end of the block send TERM if it still runs."""
    given = {key: value for key, value in args.items() if value is not None}
    body = {"chat_id": chat_id, "call_id": call_id, "args": {**given, "wait_seconds": 0.001}}
    process = Process(connection, chat_id, checked(await run_tool(connection, "execute", body)))
    try:
        yield process
    finally:
        if process._newest["status"] == "running":  # noqa: SLF001
            await process.signal("TERM")
