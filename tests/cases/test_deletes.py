"""Recorded cases about workspaces whose delete did not succeed."""

from __future__ import annotations

from tests.cases.playing import play
from tests.rigs.world import World


async def test_b07_after_a_failed_delete_no_answer_says_that_the_workspace_runs(
    world: World,
) -> None:
    """It is unknown what such a workspace still has, so no answer may say that it is running."""
    case = await play(world, "B07-stopped-then-delete-failed")
    chat = case.chat
    who = {"organization_id": case.names["org"], "owner_id": case.names["owner"]}

    started = await case.answer("c1")
    created = await chat.answer(
        await chat.ask("create_workspace", {"template_id": world.plain}, owner_name="ada", **who)
    )

    assert started["is_error"] is True
    assert "create_workspace" in started["result"]["error"]
    assert "already_exists" not in str(created)
