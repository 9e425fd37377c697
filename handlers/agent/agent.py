"""One agent process: it connects, runs the scripts, reports, and shuts down."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Final

from handlers.agent.activity import Activity
from handlers.agent.exec_requests import ExecRequests
from handlers.agent.journal import AgentJournal
from handlers.agent.link import REFUSAL_LIMIT, Connect, Link
from handlers.agent.scripts import GRACE, Scripts
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentConfig
from handlers.publishing.build_log import BuildLog
from handlers.runtime.supervise import cancel_and_wait, first_to_end
from statemachine.events import Lifecycle
from statemachine.mask import Mask

FINAL_SEND_TIMEOUT: Final = 5.0
"""Seconds in which the last facts and log lines may still be sent."""
FINAL_SEND_TIMEOUT_OFFLINE: Final = 1.0
"""The same without a connection: an agent whose build is superseded can't connect any more."""
_CANCEL_AGAIN_AFTER: Final = 1.0

_log = logging.getLogger(__name__)


class Agent:
    """The agent of one folder; `stop` makes it shut down and `run` return."""

    def __init__(
        self, home: Path, connect: Connect, *, refusal_limit: float = REFUSAL_LIMIT
    ) -> None:
        self._home, self._connect, self._refusal_limit = home, connect, refusal_limit
        self._stopping = asyncio.Event()
        self.superseded = False
        """NATS refused it for so long that its build must be superseded."""

    def stop(self) -> None:
        """Shut down: run the shutdown script, report the end, disconnect."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until the agent is stopped or its build is superseded.

        Raises AgentAlreadyRuns, and OSError or ValueError if its folder can't be read.

        """
        with agent_files.agent_lock(self._home):
            config = agent_files.read_config(self._home)
            journal = AgentJournal(self._home, config)
            link = Link(
                self._home, config, journal, self._connect, refusal_limit=self._refusal_limit
            )
            log = BuildLog(
                config.chat_id,
                config.build_id,
                "agent",
                f"/agent/{config.agent_id}",
                link.send,
                ledger=self._home / "log.json",
                mask=await _mask_of(config),
                limit=config.log_limit,
                traceparent=config.traceparent,
            )
            activity = Activity(link.report_activity, interval=config.activity_seconds)
            scripts = Scripts(self._home, config, log, journal.reached)
            requests = ExecRequests(
                self._home, config, log.mask, link.publish_many, activity.during
            )
            requests.start()
            linked = asyncio.create_task(link.run(requests.serve))
            others = [asyncio.create_task(task) for task in (log.run(), activity.run())]
            try:
                await self._run_scripts(journal, scripts, requests, linked)
                if not (linked.done() or link.refused):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(
                            FINAL_SEND_TIMEOUT if link.connected else FINAL_SEND_TIMEOUT_OFFLINE
                        ):
                            await _all_sent(journal, log, requests)
            finally:
                await cancel_and_wait(linked, *others, cancel_again_after=_CANCEL_AGAIN_AFTER)
                await requests.close()
                log.close()

    async def _run_scripts(
        self,
        journal: AgentJournal,
        scripts: Scripts,
        requests: ExecRequests,
        linked: asyncio.Task[None],
    ) -> None:
        startup = asyncio.create_task(_start(journal, scripts))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await first_to_end(stopping, linked, startup)
            if startup.done():
                startup.result()
                await first_to_end(stopping, linked)
        finally:
            await cancel_and_wait(stopping, startup, cancel_again_after=_CANCEL_AGAIN_AFTER)
        if linked.done():
            linked.result()
            self.superseded = True
            # Superseded: the workspace belongs to another build, so no script is run in it any more.
            await requests.stop()
            await scripts.end_all(GRACE)
            return
        _log.info("shutting down")
        await scripts.shutdown(requests.stop())
        journal.disconnected("the workspace is stopped")


async def _start(journal: AgentJournal, scripts: Scripts) -> None:
    """Run the startup script, unless it has run before and what it started is still running."""
    reached = journal.lifecycle
    lost = journal.machine_restarted and not scripts.still_running
    if journal.must_start or lost or scripts.must_run_again(reached):
        journal.reached(Lifecycle.CREATED)
        await scripts.startup()
    else:
        await scripts.resume(reached)


async def _mask_of(config: AgentConfig) -> Mask:
    """Build the mask in a thread: for a secret of 100 KiB that takes seconds."""
    return await asyncio.to_thread(Mask, config.secrets) if config.secrets else Mask()


async def _all_sent(journal: AgentJournal, log: BuildLog, requests: ExecRequests) -> None:
    await log.drained(FINAL_SEND_TIMEOUT)
    await requests.published()
    await journal.all_sent()
