"""Recorded cases about agents that workers considered lost."""

from __future__ import annotations

from tests.cases.playing import play
from tests.rigs.world import World


async def test_b27_an_agent_whose_sequence_is_behind_counts_as_connected(world: World) -> None:
    """The agent counts as connected regardless of its clock, and a create keeps its workspace."""
    case = await play(world, "B27-sequence-behind")
    chat = case.chat
    lost = next(e["data"] for e in chat.states.all if e["data"]["cause"]["source"] == "/workspaced")

    back = await chat.states.first(lambda e: e["data"]["version"] > lost["version"])
    ids = {name: case.names[name] for name in ("org", "owner")}
    answer = await chat.answer(
        await chat.ask(
            "create_workspace",
            {"template_id": case.names["ws"]},
            organization_id=ids["org"],
            owner_id=ids["owner"],
            owner_name="ada",
        )
    )

    assert back["data"]["agent"]["status"] == "connected"
    assert answer["result"]["status"] == "already_exists"
    assert chat.now["workspace"]["id"] == case.names["ws"]
