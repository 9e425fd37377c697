"""A machine that runs agents which implement only the contract; it may be killed or paused.

Run as `python -m tests.faults.machine CONFIG` with a JSON object. After a restart its agents
continue where their journals end, as after a reboot.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from handlers.embedded.inotify import changes
from tests.faults.plans import LIVES
from tests.faults.shared_journal import SharedJournal, write_atomically
from tests.rigs.client import credential_options
from tests.rigs.messages import Event, agent_fact
from tests.rigs.reliable_client import ReliableClient


class Agent:
    """One agent; it writes each fact to its journal before it publishes it."""

    def __init__(self, config: dict[str, Any], url: str, journals: Path) -> None:
        self._config = config
        self._path = journals / f"{config['agent_id']}.json"
        self._facts: list[Event] = []
        if self._path.exists():
            self._facts = json.loads(self._path.read_bytes())["facts"]
        self._line = ReliableClient(url, credential_options(config["credential"]), self._listen)
        self._asked = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            await asyncio.sleep(self._config["after"])
            group.create_task(self._line.run())
            for fact in list(self._facts):
                await self._line.store(fact)
            group.create_task(self._say_again())
            for delay, type_name, data in LIVES[self._config["life"]][len(self._facts) :]:
                await asyncio.sleep(delay)
                await self._line.store(self._state(type_name, data))

    async def _listen(self, client: Client) -> None:
        async def asked(_message: Msg) -> None:
            self._asked.set()

        await client.subscribe("workspaced.resend.agent", cb=asked)

    async def _say_again(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            for fact in list(self._facts):
                await self._line.store(fact)

    def _state(self, type_name: str, data: Event) -> Event:
        agent_id, sequence = self._config["agent_id"], len(self._facts) + 1
        fact = agent_fact(type_name, self._config, agent_id, sequence, data)
        self._facts.append(fact)
        write_atomically(self._path, {"facts": self._facts})
        return fact


async def machine(config: dict[str, Any]) -> None:
    """Run the agents that have a file; stop an agent when its file is removed."""
    yard = Path(config["yard"])
    there, journals = SharedJournal(yard).agents(config["name"]), yard / "facts"
    journals.mkdir(exist_ok=True)
    running: dict[str, asyncio.Task[None]] = {}
    with changes(there) as changed:
        while True:
            wanted = {path.stem: path for path in there.glob("*.json")}
            for gone in running.keys() - wanted.keys():
                running.pop(gone).cancel()
            for new in wanted.keys() - running.keys():
                with suppress(FileNotFoundError):
                    agent = Agent(json.loads(wanted[new].read_bytes()), config["url"], journals)
                    running[new] = asyncio.create_task(agent.run())
            await changed.wait()
            changed.clear()


if __name__ == "__main__":
    asyncio.run(machine(json.loads(sys.argv[1])))
