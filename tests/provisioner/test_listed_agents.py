"""`build_succeeded` lists the agents of the template; invalid agents are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig

NO_AGENT = ("/bin/true",)


async def test_agents_are_listed_with_their_parents_and_order(
    rig: Rig, provisioning: Provisioning
) -> None:
    agents = [
        {"name": "helper", "parent": "main", "display_order": 7},
        {"name": "main", "display_order": 2},
        {"name": "other"},
    ]
    async with provisioning(agent_command=NO_AGENT):
        first = await rig.ended(await rig.ask(rig.job(version=rig.version({}), agent=agents)))
        again = await rig.ended(await rig.ask(rig.job(2, version=rig.version({}), agent=agents)))

    listed = first["data"]["agents"]
    ids = {agent["name"]: agent["id"] for agent in listed}
    assert listed == [
        {"id": ids["helper"], "name": "helper", "parent_id": ids["main"], "display_order": 7},
        {"id": ids["main"], "name": "main", "display_order": 2},
        {"id": ids["other"], "name": "other", "display_order": 0},
    ]
    assert len(set(ids.values())) == 3
    assert not set(ids.values()) & {agent["id"] for agent in again["data"]["agents"]}


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        ([{"name": "a", "parent": "mian"}, {"name": "main"}], ["'a'", "'mian'", "'main'"]),
        ([{"name": "a", "parent": "a"}], ["'a'", "among its parents"]),
        (
            [{"name": "main"}, {"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}],
            ["'a'", "among its parents"],
        ),
        ([{"name": "main"}, {"name": "main"}], ["another agent has the name"]),
    ],
    ids=["unknown", "itself", "circle", "twice"],
)
async def test_agents_that_form_no_tree_fail_the_build_before_its_step_runs(
    rig: Rig,
    provisioning: Provisioning,
    tmp_path: Path,
    agents: list[dict[str, Any]],
    words: list[str],
) -> None:
    job = rig.job(version=rig.version({}), agent=agents)
    async with provisioning(agent_command=NO_AGENT):
        failed = await rig.ended(await rig.ask(job))

    assert failed["type"] == "workspaced.build_failed.v1"
    assert [word for word in words if word not in failed["data"]["error"]] == []
    assert "error_code" not in failed["data"]
    assert not (tmp_path / "root" / "workspaces" / rig.workspace).exists()
