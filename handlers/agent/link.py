"""The agent's way to the bus: found again whenever it is lost, until it is closed to it for good."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from bus import Bus, BusError, Refused, Unavailable, subjects
from bus.backoff import Backoff
from bus.subscription import call_on_message
from handlers.agent.journal import AgentJournal
from handlers.clock import clock
from handlers.publishing import agent_files, publish_once
from handlers.publishing.agent_files import AgentConfig, AgentCredential
from handlers.supervise import run_until_one_ends

RENEWED: Final = 0.3
"""The part of a sign of life's time after which the next one is given: two may be lost."""
REDIAL: Final = 10.0
"""Seconds without a server after which the connection is made anew, as the files say then."""
PATIENCE: Final = 600.0
"""Seconds of nothing but refusals after which the agent takes its build as superseded.

Refused is also who comes before the gateway is back, or before the credential is renewed."""
SPREAD: Final = 2.0
"""Seconds over which agents that are all asked at once spread their answers."""
_MARGIN: Final = 0.05
"""The part of its time that a sign of life needs at most to arrive."""
_RENEWED_WITHIN: Final = 0.5

Connect = Callable[[str, AgentCredential], Awaitable[Bus]]
"""Opens a connection to the url. Raises Refused, Unavailable."""

_log = logging.getLogger(__name__)


class Link:
    """Keeps the agent connected, shows that it lives, and sends what its journal holds."""

    def __init__(
        self,
        home: Path,
        config: AgentConfig,
        journal: AgentJournal,
        connect: Connect,
        *,
        patience: float = PATIENCE,
        clock: Callable[[], float] = clock,
    ) -> None:
        self._home, self._config, self._journal, self._connect = home, config, journal, connect
        self._patience, self._clock = patience, clock
        self._lasts = config.presence_ttl
        self._bus: Bus | None = None
        self._refused_since: float | None = None
        self._shown: float | None = None

    async def run(self) -> None:
        """Return when the bus refused this agent for so long that its build must be superseded."""
        backoff = Backoff(limit=2.0)
        while not self._out_of_patience():
            try:
                config = agent_files.read_config(self._home)
                bus = await self._connect(config.nats_url, agent_files.read_credential(self._home))
            except Refused as no:
                self._refused(no)
            except (Unavailable, TimeoutError, OSError, ValueError) as no:
                _log.info("no way to the bus yet: %s", no)
            else:
                backoff.reset()
                await self._while_connected(bus)
            await backoff.wait()
        _log.warning("refused for %g s: another build must have taken over", self._patience)

    @property
    def refused(self) -> bool:
        """Whether the bus lets this agent in no more, as far as it last said."""
        return self._refused_since is not None

    @property
    def connected(self) -> bool:
        """Whether a server is there now."""
        return self._bus is not None and self._bus.connected

    async def send(self, subject: str, data: bytes) -> None:
        """Publish a line of the log. Raises Unavailable while there is no bus."""
        if self._bus is None:
            raise Unavailable("not connected")
        await self._bus.send(subject, data)

    async def _while_connected(self, bus: Bus) -> None:
        """Do all that is done on one connection, until it is of no use any more."""
        self._bus = bus
        try:
            await run_until_one_ends(
                self._show(bus), self._send_facts(bus), self._hear(bus), bus.wait_closed()
            )
        finally:
            self._bus = None
            with suppress(BusError, TimeoutError):
                await bus.close()

    async def _show(self, bus: Bus) -> None:
        """Renew the sign of life, and report anew where it may have run out meanwhile."""
        back, fresh, backoff = asyncio.Event(), True, Backoff(limit=1.0)
        bus.on_reconnect(back.set)
        lost_at: float | None = None
        while not self._out_of_patience():
            if back.is_set():
                back.clear()
                fresh = True
            now = self._clock()
            if self._shown is not None and now - self._shown > self._lasts * (1 - _MARGIN):
                # Paused, or cut off without a reconnect: the workers may have given us up.
                fresh, self._shown = True, None
            renewal = asyncio.ensure_future(self._renew(bus))
            try:
                # Report after it, if it can be: a mark of our absence that is worked late counts
                # for nothing then.
                await asyncio.wait({renewal}, timeout=_RENEWED_WITHIN)
                if fresh and bus.connected:
                    self._journal.connected()
                    fresh = False
                stored = await renewal
            finally:
                renewal.cancel()
            if stored:
                self._shown, lost_at = now, None
                backoff.reset()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lasts * RENEWED):
                        await back.wait()
                continue
            if bus.connected:
                lost_at = None
            elif lost_at is None:
                lost_at = now
            elif now - lost_at > REDIAL:
                return
            await backoff.wait()

    async def _renew(self, bus: Bus) -> bool:
        config = self._config
        body = {
            "chat_id": config.chat_id,
            "workspace_id": config.workspace_id,
            "build_id": config.build_id,
            "agent_id": config.agent_id,
        }
        subject = subjects.presence(config.chat_id, config.agent_id)
        try:
            await bus.publish(subject, json.dumps(body).encode(), ttl=self._lasts)
        except Refused as no:
            self._refused(no)
            return False
        except Unavailable as no:
            _log.info("not shown: %s", no)
            return False
        return True

    async def _send_facts(self, bus: Bus) -> None:
        backoff = Backoff(limit=1.0)
        while not self._out_of_patience():
            fact = await self._journal.next()
            try:
                await publish_once(bus, fact)
            except Refused as no:
                self._refused(no)
                await backoff.wait()
            except Unavailable as no:
                _log.info("fact %s waits for the bus: %s", fact.identity, no)
                await backoff.wait()
            else:
                self._journal.sent()
                self._refused_since = None
                backoff.reset()

    async def _hear(self, bus: Bus) -> None:
        """Send all facts again when the workers ask."""
        loop = asyncio.get_running_loop()

        def resend() -> None:
            delay = random.uniform(0, SPREAD)  # noqa: S311 — no secret
            loop.call_later(delay, self._journal.send_again)

        await call_on_message(bus, subjects.RESEND_AGENT, resend, Backoff(limit=2.0))

    def _refused(self, no: Refused) -> None:
        _log.error("refused: %s", no)
        if self._refused_since is None:
            self._refused_since = self._clock()

    def _out_of_patience(self) -> bool:
        since = self._refused_since
        return since is not None and self._clock() - since > self._patience
