"""An agent's folder is in its workspace, but what template code writes there grants no rights."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from handlers.sandbox.processes import end_marked
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.rigs.messages import new_id

FORGED = """
import json, os, sys
path = sys.argv[-1]
config = json.loads(open(path).read())
if not os.path.exists("tried"):
    open("tried", "w").close()
    open(path, "w").write(json.dumps(config | json.loads({forged!r})))
    # An agent that has connected is started again.
    with open(os.path.join(os.path.dirname(path), "journal.json"), "w") as journal:
        json.dump(dict(facts=dict(connection=None)), journal)
    sys.exit(1)
with open({gate!r}, "w") as gate:
    gate.write(os.getcwd())
"""

RUNNING = ("/bin/sh", "-c", "sleep 1000")


async def test_a_forged_configuration_changes_neither_identity_nor_confinement_of_an_agent(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    ids = ("chat_id", "workspace_id", "build_id", "agent_id")
    forged = "{" + ", ".join(f'"{key}": "{new_id()}"' for key in ids) + ', "directory": "/"}'
    agent = (sys.executable, "-c", FORGED.format(forged=forged, gate=str(gate)))
    async with provisioning(agent_command=agent):
        job = rig.job(version=rig.version({}), agent=[{"name": "main"}])
        ended = await rig.ended(await rig.ask(job))
        directory = await asyncio.to_thread(gate.read_text)

    genuine = {key: job[key] for key in ids[:3]} | {"agent_id": ended["data"]["agents"][0]["id"]}
    assert Path(directory).name == rig.workspace
    assert rig.asked_for == [genuine] * 2


async def test_a_link_in_place_of_an_agents_folder_is_not_followed(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    (outside := tmp_path / "outside").mkdir()
    async with provisioning(agent_command=RUNNING):
        job = rig.job(version=rig.version({}), agent=[{"name": "main"}])
        await rig.ended(await rig.ask(job))
    (config,) = (tmp_path / "root/workspaces").rglob("config.json")
    config.rename(outside / "config.json")
    config.parent.rename(tmp_path / "before")
    config.parent.symlink_to(outside)
    async with provisioning(agent_command=("/bin/sh", "-c", "exit 0")):
        another = rig.job(version=rig.version({}), workspace_id=new_id())
        await rig.ended(await rig.ask(another))

    await end_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace}", grace=0)
    assert [path.name for path in outside.iterdir()] == ["config.json"]


async def test_a_restarted_provisioner_knows_which_build_each_agent_belongs_to(
    rig: Rig, provisioning: Provisioning
) -> None:
    job = rig.job(version=rig.version({}), agent=[{"name": "main"}])
    for _ in range(2):
        before = len(rig.asked_for)
        async with provisioning(agent_command=RUNNING):
            if not before:
                await rig.ended(await rig.ask(job))
            asked = rig.asked_for
            await rig.until(lambda asked=asked, before=before: len(asked) > before)  # type: ignore[misc]

    await end_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace}", grace=0)
    assert {asked["build_id"] for asked in rig.asked_for} == {job["build_id"]}
