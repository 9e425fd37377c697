"""The journal that the provisioners of a pool share: a record of every workspace they built.

Any of them continues what another began, as with the central state of infrastructure tools. The
checks count builds and workspaces by the same files.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class SharedJournal:
    """A directory with a journal for each workspace and a file for each agent that should run."""

    def __init__(self, directory: Path) -> None:
        self._journals, self._agents = directory / "journal", directory / "agents"
        for folder in (self._journals, self._agents):
            folder.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def held(self, workspace_id: str) -> AsyncIterator[None]:
        """Hold the workspace's lock; only one task of all processes holds it at a time."""
        lock = os.open(self._journals / f"{workspace_id}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.1)  # back-off
            yield
        finally:
            os.close(lock)

    def read(self, workspace_id: str) -> Record:
        path = self._journals / f"{workspace_id}.json"
        if not path.exists():
            return {"workspace_id": workspace_id, "builds": {}, "agents": []}
        return dict(json.loads(path.read_bytes()))

    def write(self, record: Record) -> None:
        """Write the record; it survives the death of this process."""
        write_atomically(self._journals / f"{record['workspace_id']}.json", record)

    def records(self) -> Iterator[Record]:
        for path in sorted(self._journals.glob("*.json")):
            yield json.loads(path.read_bytes())

    def agents(self, machine: str) -> Path:
        """Return the directory that lists the agents which this machine should run."""
        folder = self._agents / machine
        folder.mkdir(exist_ok=True)
        return folder

    def place(self, machine: str, agent: Record) -> None:
        """Request that the machine runs this agent."""
        write_atomically(self.agents(machine) / f"{agent['agent_id']}.json", agent)

    def remove(self, record: Record) -> None:
        """Request that the workspace's agents stop."""
        for machine, agent_id in record["agents"]:
            (self.agents(machine) / f"{agent_id}.json").unlink(missing_ok=True)
            # The machine's watch does not report removed files, only new or changed ones.
            (self.agents(machine) / "changed").touch()
        record["agents"] = []


def write_atomically(path: Path, content: Record) -> None:
    """Write the file so that readers see either the old or the new content, never a part."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(content))
    new.replace(path)
