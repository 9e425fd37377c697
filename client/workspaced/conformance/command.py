"""The provisioner under test as a process that the suite starts and kills."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class Command:
    """A command line in a process group of its own; what it prints goes into a file."""

    def __init__(self, line: str, env: Mapping[str, str], output: Path) -> None:
        self._line, self._env, self._output = line, {**os.environ, **env}, output
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        with self._output.open("ab") as output:
            self._process = await asyncio.create_subprocess_shell(
                f"exec {self._line}",
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def kill(self) -> None:
        """Kill it and its group with SIGKILL."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """End it with SIGTERM, and with SIGKILL after 10 s."""
        try:
            async with asyncio.timeout(10):
                await self._end(signal.SIGTERM)
        except TimeoutError:
            await self._end(signal.SIGKILL)

    def ended(self) -> int | None:
        """Return the exit status of a process that has ended by itself."""
        return None if self._process is None else self._process.returncode

    async def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        await self._process.wait()
