"""What the provisioners of a pool share: the journal of every workspace that they have built.

Whichever of them takes a job finds what another had begun, as with the state that infrastructure
tools keep centrally. The files are also what the checks count builds and workspaces by.
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
    """A directory: a journal for each workspace, and one file for each agent that should run."""

    def __init__(self, directory: Path) -> None:
        self._journals, self._agents = directory / "journal", directory / "agents"
        for folder in (self._journals, self._agents):
            folder.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def held(self, workspace_id: str) -> AsyncIterator[None]:
        """Be the only one, over all processes, that works on this workspace."""
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
        """Keep the record; on return it survives whoever wrote it."""
        write_atomically(self._journals / f"{record['workspace_id']}.json", record)

    def records(self) -> Iterator[Record]:
        for path in sorted(self._journals.glob("*.json")):
            yield json.loads(path.read_bytes())

    def agents(self, machine: str) -> Path:
        """Return where a machine finds the agents that should run there."""
        folder = self._agents / machine
        folder.mkdir(exist_ok=True)
        return folder

    def place(self, machine: str, agent: Record) -> None:
        """Let an agent run from now on."""
        write_atomically(self.agents(machine) / f"{agent['agent_id']}.json", agent)

    def remove(self, record: Record) -> None:
        """Let the workspace's agents run no more."""
        for machine, agent_id in record["agents"]:
            (self.agents(machine) / f"{agent_id}.json").unlink(missing_ok=True)
            # A file that goes wakes nobody; one that comes does.
            (self.agents(machine) / "changed").touch()
        record["agents"] = []


def write_atomically(path: Path, content: Record) -> None:
    """Write the file as a whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(content))
    new.replace(path)
