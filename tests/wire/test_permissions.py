"""Each participant tries to publish and subscribe to every subject, on the server with its shipped configuration."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from nats.aio.msg import Msg

from tests.rigs.client import TIMEOUT, Participant, connected, credential_options, role_options
from tests.rigs.messages import new_id
from tests.rigs.world import World
from tests.wire.permission_table import (
    PARTIES,
    Ids,
    answered,
    may_publish,
    may_subscribe,
    published,
    subscribed,
)

HARMLESS = b"x"
"""An invalid body: a message with it that the server permits has no effect and gets an error as answer."""
VIOLATION = re.compile(
    r'permissions violation for (\w+) (?:to|with reply of) "([^"]+)"', re.IGNORECASE
)


@asynccontextmanager
async def connected_participant(world: World, party: str) -> AsyncIterator[tuple[Participant, Ids]]:
    """Connect as that participant; an agent and a frontend get their credentials from the gateway."""
    chat = await world.chat()
    _, job = await world.building(chat)
    about = {key: job.data[key] for key in ("chat_id", "workspace_id", "build_id")}
    agent_id = new_id()
    of_agent = await world.provisioner.rpc("agent_credential", **about, agent_id=agent_id)
    of_frontend = await world.service.rpc("frontend_credential", chat_ids=[chat.id], ttl_seconds=60)
    ids = Ids(
        chat=chat.id,
        build=job.data["build_id"],
        agent=agent_id,
        other_chat=new_id(),
        other_build=new_id(),
        other_agent=new_id(),
        agent_inbox=of_agent["inbox_prefix"],
        frontend_inbox=of_frontend["inbox_prefix"],
    )
    issued = {"agent": of_agent, "frontend": of_frontend}
    credential = issued.get(party)
    options = (
        credential_options(credential)
        if credential
        else role_options(world.deployment.credentials, party)
    )
    async with connected(Participant(), world.deployment.nats, **options) as client:
        yield client, ids


async def violations(party: Participant, kind: str) -> set[str]:
    """Return the subjects that the server has denied so far, in lower case, as nats-py reports them."""
    await party.flush()
    found = (VIOLATION.search(str(error)) for error in party.errors.all)
    return {match[2] for match in found if match and match[1].lower() == kind}


def denied_subjects(denied: set[str], subjects: list[str]) -> set[str]:
    return {subject for subject in subjects if subject.lower() in denied}


@pytest.mark.parametrize("party", PARTIES)
async def test_a_participant_may_publish_only_the_subjects_of_the_contract(
    party: str, world: World
) -> None:
    async with connected_participant(world, party) as (client, ids):
        subjects, answers = published(ids), set[str]()
        awaited = {s for s in subjects if may_publish(party, s, ids) and answered(s)}
        came = asyncio.Event()

        async def heard(message: Msg) -> None:
            answers.add(subjects[int(message.subject.rpartition(".")[2])])
            if awaited <= answers:
                came.set()

        inbox = f"{ids.own_inbox(party)}.matrix"
        await client.client.subscribe(f"{inbox}.*", cb=heard)
        for number, subject in enumerate(subjects):
            await client.client.publish(subject, HARMLESS, reply=f"{inbox}.{number}")
        denied = denied_subjects(await violations(client, "publish"), subjects)

        assert denied == {s for s in subjects if not may_publish(party, s, ids)}
        try:
            await asyncio.wait_for(came.wait(), TIMEOUT)
        except TimeoutError:
            pytest.fail(f"without effect: {sorted(awaited - answers)}")
        assert answers.isdisjoint(denied)


@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("queue", ["", "q"])
async def test_a_participant_may_subscribe_only_to_the_subjects_of_the_contract(
    party: str, queue: str, world: World
) -> None:
    async with connected_participant(world, party) as (client, ids):
        subjects = subscribed(ids)
        for subject in subjects:
            listening = await client.client.subscribe(subject, queue)
            # Unsubscribe at once, so that the queue group takes no message from the running roles.
            await listening.unsubscribe()
        denied = denied_subjects(await violations(client, "subscription"), subjects)

    assert denied == {s for s in subjects if not may_subscribe(party, s, ids)}


@pytest.mark.parametrize(
    "wanted",
    [
        {"last_by_subj": "{other}"},
        {"seq": 1},
        {"seq": 1, "next_by_subj": "workspaced.state.>"},
        {"multi_last": ["workspaced.state.>"]},
        {"batch": 100, "next_by_subj": "{other}"},
    ],
    ids="-".join,
)
async def test_a_frontend_cannot_read_other_subjects_through_the_request_body(
    wanted: dict[str, object], world: World
) -> None:
    other = await world.chat()
    await world.building(other)
    async with connected_participant(world, "frontend") as (client, ids):
        body = json.dumps(wanted).replace("{other}", f"workspaced.state.{other.id}").encode()
        own = f"$JS.API.DIRECT.GET.WORKSPACED_STATE.workspaced.state.{ids.chat}"
        answer = await client.client.request(own, body, timeout=TIMEOUT)

    assert answer.data == b""
    assert answer.headers["Status"] == "408"
