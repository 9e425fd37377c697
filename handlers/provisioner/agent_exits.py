"""What is reported of agents whose process is gone: exit status or signal, and last lines."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statemachine.mask import Mask

OUTPUT_SIZE: Final = 4096
"""Bytes of the last lines of an agent that are reported."""
_READ: Final = 16 * OUTPUT_SIZE
"""Bytes of the log that are read for them: a secret that is masked may be longer than what is reported."""
_SHELL_SIGNAL: Final = 128
"""bubblewrap and shells add this to the number of the signal that ended a program."""


@dataclass(frozen=True, slots=True)
class AgentExit:
    """How an agent's process ended."""

    status: int | None = None
    """Exit status; negative: the signal that ended it; None: unknown, as it was not started by this process."""
    output: str = ""
    """Its last lines."""

    def data(self) -> dict[str, Any]:
        """Return the fields of `agent_exited`."""
        data: dict[str, Any] = {}
        if self.status is not None and self.status >= 0:
            data["exit_code"] = self.status
        elif self.status is not None:
            data["signal"] = _signal_name(-self.status)
        return {**data, "output": self.output} if self.output else data


def unwrapped(status: int) -> int:
    """Return the status of the program that bubblewrap ran, from that of bubblewrap."""
    if _SHELL_SIGNAL < status <= _SHELL_SIGNAL + signal.NSIG:
        return _SHELL_SIGNAL - status
    return status


async def last_lines(log: Path, secrets: tuple[str, ...]) -> str:
    """Return the last lines of an agent's log, at most `OUTPUT_SIZE` bytes, with `secrets` masked."""
    try:
        # Neither follows a link nor blocks on a FIFO that a script has put there.
        opened = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(opened, "rb") as file:  # noqa: ASYNC230, PTH123 — opened already
            size = file.seek(0, os.SEEK_END)
            whole = file.seek(max(0, size - _READ)) == 0
            text = file.read(_READ).decode(errors="replace").replace("\0", "\ufffd")
    except OSError:
        return ""
    # In a thread: for a secret of 100 KiB this takes seconds.
    return await asyncio.to_thread(_masked_end, text, secrets, whole=whole)


def _masked_end(text: str, secrets: tuple[str, ...], *, whole: bool) -> str:
    mask = Mask(secrets)
    masked = mask.whole(text)
    text = (masked if whole else mask.torn(masked)).strip()
    data = text.encode(errors="replace")
    if len(data) <= OUTPUT_SIZE:
        return text
    cut = data[-OUTPUT_SIZE:]
    _, line_end, lines = cut.partition(b"\n")
    return (lines if line_end else cut).decode(errors="ignore")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:  # a real-time signal
        return str(number)
