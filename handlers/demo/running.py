"""The demo's `up`, and what it leaves: agents outlive it elsewhere, here nothing may."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handlers.embedded.child import launched
from handlers.errors import NotFoundError
from handlers.sandbox.processes import end_marked

_START_LIMIT: Final = 60.0
_STOP_LIMIT: Final = 15.0
_GRACE: Final = 3.0
"""Seconds for the agents' shutdown scripts."""


@dataclass(slots=True)
class RunningUp:
    """`workspaced up` as a process of its own, as a user would run it."""

    directory: Path
    _process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises NotFoundError, TimeoutError.

        A terminal's Ctrl-C is for us, who end it; when we are killed, it ends as well.
        """
        up = [sys.executable, "-m", "handlers", "up", "--data-dir", str(self.directory)]
        with (self.directory / "up.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *launched(up, farewell=signal.SIGTERM, identity=()),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        if self._process.stdout is None:
            raise NotFoundError("`workspaced up` has no output")
        line = await asyncio.wait_for(self._process.stdout.readline(), _START_LIMIT)
        if not line:
            words = (self.directory / "up.log").read_text(errors="replace")[-2000:]
            raise NotFoundError(f"`workspaced up` ended before it was ready:\n{words}")

    async def end(self) -> None:
        """End it, and all that runs in its workspaces, once nobody starts it again."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_LIMIT)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        for workspace_id in self._workspaces():
            await end_marked(f"WORKSPACED_WORKSPACE_ID={workspace_id}", grace=_GRACE)

    def _workspaces(self) -> list[str]:
        return [found.name for found in self.directory.glob("provisioner/*/workspaces/*")]
