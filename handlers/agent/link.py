"""The agent's connection to NATS: reconnected until NATS refuses the agent for good."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from bus import Backoff, Bus, BusError, Outbound, PubAck, Refused, Unavailable, subjects
from bus.subscription import call_on_message
from handlers.agent.journal import AgentJournal
from handlers.publishing import agent_files, publish_once
from handlers.publishing.agent_files import AgentConfig, AgentCredential
from handlers.runtime import clock
from handlers.runtime.supervise import run_until_one_ends

RENEWAL_FRACTION: Final = 0.3
"""The fraction of the presence TTL after which the next message is sent, so that two may be lost."""
RECONNECT_AFTER: Final = 10.0
"""Seconds without a server after which the agent reads its files again and makes a new connection."""
REFUSAL_LIMIT: Final = 600.0
"""Seconds of continuous refusals after which the agent concludes that its build is superseded.

NATS also refuses an agent while the gateway is away, or until its credential is renewed.
"""
SPREAD: Final = 2.0
"""Seconds over which agents spread the answers to a request that reaches all of them."""
_MARGIN: Final = 0.05
"""The part of the presence TTL that a message needs at most to arrive."""
_RENEWED_WITHIN: Final = 0.5

Connect = Callable[[str, AgentCredential], Awaitable[Bus]]
"""Opens a connection to the URL. Raises Refused, Unavailable."""

_log = logging.getLogger(__name__)


class Link:
    """Keeps the agent connected, renews its presence message, and sends the facts of its journal."""

    def __init__(
        self,
        home: Path,
        config: AgentConfig,
        journal: AgentJournal,
        connect: Connect,
        *,
        refusal_limit: float = REFUSAL_LIMIT,
    ) -> None:
        self._home, self._config, self._journal, self._connect = home, config, journal, connect
        self._refusal_limit = refusal_limit
        self._presence_ttl = config.presence_ttl
        self._bus: Bus | None = None
        self._refused_since: float | None = None
        self._presence_at: float | None = None

    async def run(self, *serve: Callable[[Bus], Coroutine[Any, Any, None]]) -> None:
        """Return when NATS has refused this agent for so long that its build must be superseded.

        `serve`: more that has to run on each connection until it is lost.

        """
        backoff = Backoff(limit=2.0)
        while not self._refused_too_long():
            try:
                config = agent_files.read_config(self._home)
                bus = await self._connect(config.nats_url, agent_files.read_credential(self._home))
            except Refused as error:
                self._note_refusal(error)
            except (Unavailable, TimeoutError, OSError, ValueError) as error:
                _log.info("not connected to NATS yet, trying again: %s", error)
            else:
                backoff.reset()
                await self._work_while_connected(bus, serve)
            await backoff.wait()
        _log.warning(
            "NATS refused this agent for %g s, so its build must be superseded", self._refusal_limit
        )

    @property
    def refused(self) -> bool:
        """Whether NATS has refused this agent since the last success."""
        return self._refused_since is not None

    @property
    def connected(self) -> bool:
        """Whether the agent is connected to a server now."""
        return self._bus is not None and self._bus.connected

    async def send(self, subject: str, data: bytes) -> None:
        """Publish a log line. Raises Unavailable without a connection."""
        if self._bus is None:
            raise Unavailable("not connected")
        await self._bus.send(subject, data)

    async def report_activity(self) -> None:
        """Publish that somebody works in the workspace. Raises Refused, Unavailable."""
        if self._bus is None:
            raise Unavailable("not connected")
        await publish_once(self._bus, self._journal.activity())

    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        """Publish messages and return their acknowledgements. Raises Unavailable without a connection."""
        if self._bus is None:
            raise Unavailable("not connected")
        return await self._bus.publish_many(messages)

    async def _work_while_connected(
        self, bus: Bus, serve: Sequence[Callable[[Bus], Coroutine[Any, Any, None]]]
    ) -> None:
        """Renew presence, send facts and serve resend requests on one connection, until it is lost."""
        self._bus = bus
        try:
            await run_until_one_ends(
                self._keep_presence(bus),
                self._send_facts(bus),
                self._serve_resend_requests(bus),
                bus.wait_closed(),
                *(one(bus) for one in serve),
            )
        finally:
            self._bus = None
            with suppress(BusError, TimeoutError):
                await bus.close()

    async def _keep_presence(self, bus: Bus) -> None:
        """Renew the presence message. Report the agent again whenever that message may have expired."""
        back, fresh, backoff = asyncio.Event(), True, Backoff(limit=1.0)
        bus.on_reconnect(back.set)
        lost_at: float | None = None
        while not self._refused_too_long():
            if back.is_set():
                back.clear()
                fresh = True
            now = clock()
            if self._presence_at is not None and now - self._presence_at > self._presence_ttl * (
                1 - _MARGIN
            ):
                # This process was paused, or cut off without a reconnect: workers may have noticed a loss.
                fresh, self._presence_at = True, None
            renewal = asyncio.ensure_future(self._renew(bus))
            try:
                # Report after the renewal if possible: then a mark of absence that workers process
                # late is ignored.
                await asyncio.wait({renewal}, timeout=_RENEWED_WITHIN)
                if fresh and bus.connected:
                    self._journal.connected()
                    fresh = False
                stored = await renewal
            finally:
                renewal.cancel()
            if stored:
                self._presence_at, lost_at = now, None
                backoff.reset()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._presence_ttl * RENEWAL_FRACTION):
                        await back.wait()
                continue
            if bus.connected:
                lost_at = None
            elif lost_at is None:
                lost_at = now
            elif now - lost_at > RECONNECT_AFTER:
                return
            await backoff.wait()

    async def _renew(self, bus: Bus) -> bool:
        config = self._config
        subject = subjects.presence(config.chat_id, config.agent_id)
        try:
            await bus.publish(subject, json.dumps(config.ids()).encode(), ttl=self._presence_ttl)
        except Refused as error:
            self._note_refusal(error)
            return False
        except Unavailable as error:
            _log.info("the presence message can't be sent: %s", error)
            return False
        return True

    async def _send_facts(self, bus: Bus) -> None:
        backoff = Backoff(limit=1.0)
        while not self._refused_too_long():
            fact = await self._journal.next()
            try:
                await publish_once(bus, fact)
            except Refused as error:
                self._note_refusal(error)
                await backoff.wait()
            except Unavailable as error:
                _log.info("fact %s waits for NATS: %s", fact.identity, error)
                await backoff.wait()
            else:
                self._journal.sent()
                self._refused_since = None
                backoff.reset()

    async def _serve_resend_requests(self, bus: Bus) -> None:
        """Send all facts again when the workers ask for them."""
        loop = asyncio.get_running_loop()

        def resend() -> None:
            delay = random.uniform(0, SPREAD)  # noqa: S311 — no secret
            loop.call_later(delay, self._journal.send_again)

        await call_on_message(bus, subjects.RESEND_AGENT, resend, Backoff(limit=2.0))

    def _note_refusal(self, error: Refused) -> None:
        _log.error("NATS refuses this agent: %s", error)
        if self._refused_since is None:
            self._refused_since = clock()

    def _refused_too_long(self) -> bool:
        since = self._refused_since
        return since is not None and clock() - since > self._refusal_limit
