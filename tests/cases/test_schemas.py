"""All messages that workspaced publishes in a real run match docs/schemas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from nats.aio.msg import Msg

from tests import schemas
from tests.cli.template_folders import folder
from tests.rigs.client import Received
from tests.rigs.messages import Event
from tests.rigs.processes import Up
from tests.rigs.world import World

TYPES = {
    *("tool_requested", "tool_canceled", "delete_requested"),
    *("build_requested", "build_started", "build_succeeded"),
    *("agent_connected", "agent_lifecycle", "agent_disconnected"),
    *("log_appended", "state_changed", "tool_resolved"),
}


async def test_every_message_of_a_workspace_from_create_to_delete_fits_its_schema(
    running: Up, world: World, tmp_path: Path
) -> None:
    chat = await world.chat()
    said: Received[Event] = Received()

    async def hear(message: Msg) -> None:
        await said.add(json.loads(message.data))

    for subject in ("in.*", "state", "log", "result"):
        await world.operator.client.subscribe(f"workspaced.{subject}.{chat.id}.>", cb=hear)
    await world.operator.client.subscribe(f"workspaced.state.{chat.id}", cb=hear)
    await world.operator.client.subscribe("workspaced.job.local", cb=hear)
    await world.operator.flush()
    template = await asyncio.to_thread(
        running.data, "template", "push", folder(tmp_path), "--organization", chat.organization_id
    )

    await chat.call("create_workspace", {"template_id": template["template_id"]})
    await chat.state("ready")
    call = await chat.ask("stop_workspace")
    await chat.cancel(call)
    await chat.answer(call)
    await chat.state("stopped")
    await chat.publish_event("delete_requested", {})
    await chat.state("none", above=1)

    of_chat = [event for event in said.all if event["subject"] == chat.id]
    for event in of_chat:
        schemas.check_event(event)
    assert {event["type"] for event in of_chat} == {f"workspaced.{name}.v1" for name in TYPES}
