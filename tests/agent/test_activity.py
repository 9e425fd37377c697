"""An agent reports that somebody works in its workspace (contract §3, agent_activity)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from bus import Unavailable
from handlers.agent import activity
from handlers.agent.activity import Activity
from handlers.agent.journal import AgentJournal
from handlers.provisioner.job import read_job
from handlers.publishing import OutgoingEvent
from handlers.publishing.agent_files import AgentConfig
from handlers.runtime.supervise import running
from tests.rigs.messages import cloud_event, new_id


class Reports:
    """Records reports, and can refuse some."""

    def __init__(self, journal: AgentJournal) -> None:
        self._journal, self.failures = journal, 0
        self.sent: list[OutgoingEvent] = []
        self._changed = asyncio.Condition()

    async def report(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("not connected")
        async with self._changed:
            self.sent.append(self._journal.activity())
            self._changed.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(self.sent) >= count)


Working = Callable[[float], AbstractAsyncContextManager[Activity]]


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    ids = {name: new_id() for name in ("chat_id", "workspace_id", "build_id", "agent_id")}
    return AgentConfig(name="main", nats_url="", directory=tmp_path, **ids)


@pytest.fixture
def reports(tmp_path: Path, config: AgentConfig) -> Reports:
    return Reports(AgentJournal(tmp_path, config))


@pytest.fixture
def working(reports: Reports) -> Working:
    @asynccontextmanager
    async def work(interval: float) -> AsyncIterator[Activity]:
        observed = Activity(reports.report, interval=interval)
        async with running(observed.run()):
            yield observed

    return work


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)  # back-off


async def test_the_beginning_of_an_activity_is_reported_at_once(
    reports: Reports, working: Working, config: AgentConfig
) -> None:
    async with working(3600.0) as observed:
        await turns()
        assert not reports.sent
        with observed.during(), observed.during():
            await reports.until(1)
        await turns()

    (report,) = reports.sent
    event = json.loads(report.body)
    assert report.subject == f"workspaced.in.agent.{config.chat_id}.{config.agent_id}"
    assert event["type"] == "workspaced.agent_activity.v1"
    assert set(event["data"]) == {"workspace_id", "build_id", "agent_id", "sequence"}
    assert abs(event["data"]["sequence"] / 1e6 - time.time()) < 3600


async def test_an_activity_is_reported_regularly_while_it_lasts(
    reports: Reports, working: Working
) -> None:
    async with working(0.01) as observed:
        with observed.during():
            await reports.until(3)
        told = len(reports.sent)
        await turns()
        await reports.until(told)

    sequences = [json.loads(report.body)["data"]["sequence"] for report in reports.sent]
    assert sequences == sorted(set(sequences))
    assert len({report.identity for report in reports.sent}) == len(sequences)


async def test_short_activities_that_follow_one_another_are_reported_together(
    reports: Reports, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "BETWEEN_REPORTS", 0.2)
    async with working(3600.0) as observed:
        for _ in range(50):
            with observed.during():
                await asyncio.sleep(0)  # back-off
        await reports.until(2)
        await turns()

    assert len(reports.sent) == 2, "the first at once, and the others by one report later"


async def test_no_activity_is_reported_if_the_workspace_has_no_lifetime(
    reports: Reports, working: Working
) -> None:
    async with working(0) as observed:
        with observed.during():
            await turns()

    assert not reports.sent


async def test_an_activity_that_lasts_is_reported_after_an_outage(
    reports: Reports, working: Working
) -> None:
    reports.failures = 3
    async with working(3600.0) as observed:
        with observed.during():
            await reports.until(1)


async def test_activity_is_not_stored_with_the_agents_facts(
    tmp_path: Path, config: AgentConfig
) -> None:
    journal = AgentJournal(tmp_path, config)
    journal.connected()
    journal.activity()
    journal.connected()

    stored = json.loads((tmp_path / "journal.json").read_bytes())["facts"]
    assert set(stored) == {"connection"}


@pytest.mark.parametrize(("told", "every"), [({"activity_seconds": 20}, 20.0), ({}, 60.0)])
def test_the_job_names_the_interval_of_the_reports(told: dict[str, int], every: float) -> None:
    ids = {name: new_id() for name in ("chat_id", "workspace_id", "build_id")}
    job = {**ids, "build_number": 2, "transition": "stop", **told}
    body = json.dumps(cloud_event("build_requested", "/workspaced", ids["chat_id"], job)).encode()

    assert read_job(body).activity_seconds == every
