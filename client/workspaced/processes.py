"""A command that runs in a chat's workspace: its output as it comes, its input, its end."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

from workspaced.connection import Connection
from workspaced.errors import CannotRun, Unavailable
from workspaced.models import Answer, Exit

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
_ATTEMPTS: Final = 6


async def run_tool(connection: Connection, tool: str, body: Mapping[str, Any]) -> Answer:
    """Call a tool of a running workspace; repeat it with the same `call_id` if nobody answers.

    Raises CallConflict, TooBusy, Refused, Invalid, Unavailable.
    """
    waits = body["args"].get("wait_seconds") or (10 if tool == "execute" else 0)
    for attempt in range(1, _ATTEMPTS):
        try:
            return Answer.model_validate(
                await connection.rpc(tool, body, within=min(waits, 60) + _MARGIN)
            )
        except Unavailable:
            await asyncio.sleep(0.2 * attempt)  # back-off
    return Answer.model_validate(await connection.rpc(tool, body, within=min(waits, 60) + _MARGIN))


class Process:
    """A command in a workspace. Iterate over it for its output; `wait` for its end."""

    def __init__(self, connection: Connection, chat_id: str, first: Mapping[str, Any]) -> None:
        self.id = str(first["exec_id"])
        """By this id another process finds the command again: `chat.process(id)`."""
        self._connection, self._chat_id, self._newest = connection, chat_id, dict(first)

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the output from its first byte, stdout and stderr as one, until the command has ended."""
        piece: Mapping[str, Any] = {"next": 0, "status": "running"}
        while True:
            before = piece["next"]
            piece = await self._output(before)
            if piece["output"]:
                yield piece["output"]
            elif piece["status"] == "exited" and piece["next"] == before:
                return

    async def wait(self) -> Exit:
        """Wait for the end of the command. Raises CannotRun, Unavailable."""
        while self._newest["status"] == "running":
            await self._output(self._newest["next"])
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
        piece = await self._call("process_output", after=after, wait_seconds=_WAIT)
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
