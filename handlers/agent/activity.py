"""Reports that somebody works in this workspace, so that workers do not stop it at the end of its lifetime.

Activity is a command that runs or a request that is served. It is reported at once when it begins, and again in
regular intervals while it lasts. A report that could not be sent is not kept: a new one replaces it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

from bus import Backoff, Refused, Unavailable

BETWEEN_REPORTS: Final = 1.0
"""Seconds between two reports at least: short activities that follow one another are reported together."""

_log = logging.getLogger(__name__)


class Activity:
    """Knows whether somebody works in the workspace now, and reports it.

    `report` publishes one `agent_activity`; it raises Unavailable or Refused. `interval`: seconds between two
    reports while activity lasts; 0: nothing is reported, because activity does not put any end off.

    """

    def __init__(self, report: Callable[[], Awaitable[None]], *, interval: float) -> None:
        self._report, self._interval = report, interval
        self._ongoing = 0
        self._begun = asyncio.Event()
        """Set from the beginning of an activity until it is reported."""

    @contextmanager
    def during(self) -> Iterator[None]:
        """Count the block as activity. Blocks may overlap."""
        self._ongoing += 1
        if self._ongoing == 1:
            self._begun.set()
        try:
            yield
        finally:
            self._ongoing -= 1

    async def run(self) -> NoReturn:
        """Report activity until cancelled."""
        if not self._interval:
            await asyncio.get_running_loop().create_future()
        backoff = Backoff(limit=BETWEEN_REPORTS)
        while True:
            # An activity that ends before its report can be sent was too short to matter.
            if self._ongoing or self._begun.is_set():
                await self._report_once(backoff)
            await self._until_due()

    async def _report_once(self, backoff: Backoff) -> None:
        self._begun.clear()
        try:
            await self._report()
        except (Refused, Unavailable) as error:
            _log.info("activity can't be reported now: %s", error)
            await backoff.wait()
            if self._ongoing:
                self._begun.set()
            return
        backoff.reset()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(BETWEEN_REPORTS, self._interval)):
                await asyncio.get_running_loop().create_future()

    async def _until_due(self) -> None:
        """Return when an activity has begun, or when `interval` has passed since the last report."""
        passed = min(BETWEEN_REPORTS, self._interval)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval - passed if self._ongoing else None):
                await self._begun.wait()
