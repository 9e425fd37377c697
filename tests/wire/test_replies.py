"""Permissions do not check the reply subject of a request: accounts prevent its misuse.

A client chooses the subject of the answer. If it shared an account with the streams, the server itself
would publish a PubAck, another chat's state or an empty "not found" there: on the subject of a state or a
result, or of JetStream's API, where an empty message deletes a stream.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from nats.aio.msg import Msg

from tests.rigs.client import Participant
from tests.rigs.messages import new_id
from tests.rigs.world import World
from tests.wire.permission_table import STREAMS, Ids
from tests.wire.test_permissions import HARMLESS, connected_participant

GET = "$JS.API.DIRECT.GET.WORKSPACED_"


def requests_of(party: str, ids: Ids) -> list[str]:
    """Return the requests of this participant that the server answers."""
    state = f"{GET}STATE.workspaced.state."
    return {
        "chat-service": [
            f"workspaced.in.tool.{ids.other_chat}.svc",
            state + ids.chat,
            state + ids.other_chat,  # has no state: the answer is empty
            f"{GET}RESULT.workspaced.result.{ids.other_chat}.1",
            f"{GET}STATE",
        ],
        "gateway": [
            f"workspaced.in.tool.{ids.other_chat}.svc",
            state + ids.chat,
            state + ids.other_chat,
            f"{GET}LOG",
        ],
        "agent": [
            f"workspaced.in.agent.{ids.chat}.{ids.agent}",
            f"workspaced.log.{ids.chat}.{ids.build}",
            f"workspaced.presence.{ids.chat}.{ids.agent}",
        ],
        "frontend": [state + ids.chat],
    }[party]


def forbidden_subjects(ids: Ids) -> list[str]:
    """Return subjects on which these participants may not publish."""
    victim = ids.other_agent  # the id of a chat without events
    return [
        *(f"$JS.API.STREAM.{verb}.WORKSPACED_{s}" for verb in ("PURGE", "DELETE") for s in STREAMS),
        "$JS.API.STREAM.MSG.DELETE.WORKSPACED_STATE",
        "$JS.API.CONSUMER.DELETE.WORKSPACED_IN.worker",
        "$JS.API.CONSUMER.RESET.WORKSPACED_IN.worker",
        "$JS.ACK.WORKSPACED_IN.worker.1.1.1.1795194287913284674.0",
        f"workspaced.in.tool.{victim}.svc",
        f"workspaced.in.provisioner.{victim}.wire",
        f"workspaced.in.agent.{victim}.{victim}",
        f"workspaced.state.{victim}",
        f"workspaced.log.{victim}.{victim}",
        f"workspaced.result.{victim}.1",
        f"workspaced.ui.{victim}.state",
        f"workspaced.presence.{victim}.{victim}",
        f"workspaced.timer.arm.{victim}.x.1",
        "workspaced.job.nobody",
        "workspaced.dead.tool",
        "workspaced.resend.provisioner",
    ]


@pytest.mark.parametrize("party", ["chat-service", "gateway", "agent", "frontend"])
async def test_a_reply_cannot_be_directed_to_a_forbidden_subject(party: str, world: World) -> None:
    async with connected_participant(world, party) as (client, ids):
        heard: list[str] = []

        async def hear(message: Msg) -> None:
            heard.append(message.subject)

        watched = forbidden_subjects(ids)
        for subject in watched:
            if subject.startswith("workspaced.") and "dead" not in subject:
                await world.operator.client.subscribe(subject, cb=hear)
        await world.operator.flush()
        before, stored = await stream_states(world.operator)
        for subject in requests_of(party, ids):
            for target in watched:
                await client.client.publish(subject, HARMLESS, reply=target)
                await client.client.publish(subject, b"", reply=target)
        # The server answers in order: after this answer, all earlier requests have been answered.
        inbox, answered = f"{ids.own_inbox(party)}.last", Participant().errors

        async def last(message: Msg) -> None:
            await answered.add(Exception(message.subject))

        await client.client.subscribe(f"{inbox}.*", cb=last)
        for number, subject in enumerate(requests_of(party, ids)):
            await client.client.publish(subject, HARMLESS, reply=f"{inbox}.{number}")
        await answered.count(len(requests_of(party, ids)))
        await world.operator.flush()

        assert heard == []
        after, left = await stream_states(world.operator)
        assert after == before
        # Chats of other tests may move meanwhile: their newest state replaces the one before.
        assert all(left[name] >= stored[name] for name in stored), (stored, left)
    chat = await world.chat()
    await world.building(chat)  # workspaced still works


async def stream_states(operator: Participant) -> tuple[dict[str, Any], dict[str, int]]:
    """Return when each stream and the workers' consumer were created, and how many states and results are stored."""
    created: dict[str, Any] = {}
    stored: dict[str, int] = {}
    for name in STREAMS:
        info = await operator.js.stream_info(f"WORKSPACED_{name}")
        created[name] = info.created
        if name in ("STATE", "RESULT"):
            stored[name] = info.state.messages
    consumer = await operator.js.consumer_info("WORKSPACED_IN", "worker")
    return {**created, "consumer": consumer.created}, stored


async def test_an_event_is_not_lost_when_another_sender_used_its_message_id(world: World) -> None:
    """NATS has one duplicate window for all subjects, so another sender can use a message id first."""
    chat = await world.chat()
    call, job = await world.building(chat)
    fact_id = new_id()
    taken = {"Nats-Msg-Id": f"/provisioner/{world.provisioner.name}:{fact_id}"}

    await world.service.publish(f"workspaced.in.tool.{chat.id}.svc", b"{}", taken)
    keys = ("workspace_id", "build_id", "build_number", "transition")
    told = {
        **{key: job.data[key] for key in keys},
        "template_version_id": job.template["version_id"],
        "agents": [],
    }
    fact = await world.provisioner.publish_event("build_succeeded", job, id=fact_id, **told)
    subject = f"workspaced.in.provisioner.{chat.id}.{world.provisioner.name}"
    again = await world.provisioner.publish(subject, fact)
    assert again  # the server still treats it as a repeat
    # The senders of this repository also do this when NATS reports a repeat.
    await world.provisioner.js.publish(subject, json.dumps(fact).encode())

    assert (await chat.answer(call))["is_error"] is False
