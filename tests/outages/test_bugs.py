"""An event that fails in every transaction, by a bug or by its content, holds up no others."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from handlers.embedded import Servers
from tests.outages import planted
from tests.rigs.client import Chat
from tests.rigs.fleet import SHORT, Fleet, fleet_on
from tests.rigs.world import Deployment, World, connected_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPOILT = {
    "NUL": '"\\u0000"',
    "a lone surrogate": '"\\ud800"',
    "a number that no double holds": "1e999999",
    "nesting": "[" * 20_000 + "]" * 20_000,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(
    module_servers: tuple[Servers, str, Path],
) -> AsyncIterator[tuple[Fleet, Deployment]]:
    servers, database_url, home = module_servers
    async with fleet_on(servers, database_url, home, SHORT) as fleet:
        worker = await fleet.start("worker")
        place = await fleet.deployment("plain")
        await fleet.end(worker, signal.SIGTERM)
        yield fleet, place


async def spoilt(chat: Chat, world: World, name: str, value: str) -> None:
    """Publish a call with a value that the database can't store."""
    call = name.replace(" ", "-")
    body = json.dumps(chat.request("list_templates", {"a": "here"}, call_id=call))
    await world.service.publish(chat.subject, body.replace('"here"', value).encode())


async def test_an_event_that_triggers_a_bug_is_the_only_dead_letter(
    fleet: tuple[Fleet, Deployment],
) -> None:
    running, place = fleet
    async with connected_world(place) as world:
        worker = await running.start("worker")
        built, other, asking = [await world.chat() for _ in range(3)]
        built_call, job = await world.building(built)
        other_call, other_job = await world.building(other)
        letters = await world.operator.hear("workspaced.dead.tool", "workspaced.dead.provisioner")
        await running.end(worker, signal.SIGTERM)

        # All these events wait for the next worker and arrive in one batch.
        bad = await world.provisioner.publish_event("build_failed", job, error=planted.PLANTED)
        await world.provisioner.succeed(job)
        for name, value in SPOILT.items():
            await spoilt(asking, world, name, value)
        bad_call = await asking.ask("list_templates", {"query": planted.PLANTED})
        good_call = await asking.ask("list_templates")
        await world.provisioner.succeed(other_job)
        await running.start("worker", program=Path(planted.__file__))

        for chat, call, its_job in ((built, built_call, job), (other, other_call, other_job)):
            answer = await chat.answer(call)
            assert answer["result"]["build_id"] == its_job.build_id
            await chat.entered("building", "ready")
        assert (await asking.answer(good_call))["result"]["count"] == 1
        refused = await asking.answer(bad_call)
        assert refused["is_error"] is True
        assert "internal" in refused["result"]["error"]
        for name in SPOILT:
            if name == "nesting":
                continue  # workers can't read which call this is
            assert (await asking.answer(name.replace(" ", "-")))["is_error"] is True
        found = await letters.count(len(SPOILT) + 2)
        reasons = sorted((letter.headers or {})["Workspaced-Reason"] for letter in found)
        assert reasons == sorted(["internal"] * 2 + ["bad_data"] * len(SPOILT))
        assert json.dumps(bad).encode() in [letter.data for letter in found]
