"""`python -m handlers.agent CONFIG`: the program with which a provisioner starts an agent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

from bus import Bus
from bus.jetstream import connect
from handlers.agent.agent import Agent
from handlers.agent.link import Connect
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentAlreadyRuns, AgentCredential
from handlers.runtime.container_init import become_init_child
from handlers.runtime.listeners import client_context
from handlers.sandbox.processes import umask_fault

_log = logging.getLogger("handlers.agent")


async def dial(home: Path, url: str, credential: AgentCredential) -> Bus:
    """Connect to NATS as the agent of that folder. Raises Refused, Unavailable, ValueError."""
    return await connect(
        url,
        name="workspaced agent",
        seed=credential.seed,
        jwt=credential.jwt,
        inbox_prefix=credential.inbox_prefix,
        tls=client_context(agent_files.read_config(home).nats_ca),
    )


async def agent(config: Path, connect: Connect | None = None) -> int:
    """Run the agent of that configuration until it ends or gets a signal; return the exit status.

    0: it shut down, or another process is this agent. 1: it can't run. 3: NATS refused it for so long that
    its build must be superseded; its provisioner checks that, and otherwise starts it again.

    """
    home = Path(os.path.realpath(config)).parent  # noqa: ASYNC240 — once, at the start
    running = Agent(home, connect or partial(dial, home))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.stop)
    try:
        await running.run()
    except AgentAlreadyRuns:
        _log.info("%s: this agent is already running", config)
    except OSError as error:
        exists = os.path.exists(config)  # noqa: ASYNC240, PTH110 — also False if it can't be examined
        _log.error("%s: %s", (exists and error.filename) or config, error.strerror or error)
        return 1
    except ValueError as error:
        _log.error("%s: %s", config, error)
        return 1
    return agent_files.REFUSED_STATUS if running.superseded else 0


def run_agent(config: Path) -> int:
    """Run the agent in an event loop of its own; only in a main thread, where signals arrive."""
    return asyncio.run(agent(config))


def main() -> int:
    """Run as a program."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if len(sys.argv) != 2:  # noqa: PLR2004 — the program and its one argument
        sys.stderr.write("usage: python -m handlers.agent CONFIG\n")
        return 2
    if (fault := umask_fault()) is not None:
        _log.error("%s", fault)
        return 1
    become_init_child()
    return run_agent(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
