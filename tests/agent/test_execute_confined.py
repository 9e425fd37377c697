"""Commands run in the confinement of their agent's scripts, and survive the agent there too."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from handlers.sandbox.policy import Mechanism
from handlers.sandbox.processes import find_marked
from tests.agent.test_outliving import EVERY_WAY, confined, killed
from tests.agent.world import World, started
from tests.rigs.messages import new_id


async def ask(world: World, agent: str, tool: str, call_id: str = "", /, **args: Any) -> Any:
    rig = world.rig
    body = {"chat_id": rig.chat, "agent_id": agent, "call_id": call_id or new_id(), "args": args}
    subject = f"workspaced.agent.{rig.chat}.{agent}.{tool}"
    reply = await rig.bus.request(subject, json.dumps(body).encode(), timeout=70)
    answer = json.loads(reply.data)
    assert answer["is_error"] is False, answer
    return answer["result"]


@EVERY_WAY
async def test_a_confined_command_survives_the_agent_and_is_ended_by_a_stop(
    world: World, way: Mechanism
) -> None:
    rig = world.rig
    template = {
        "version": rig.version({"sub/file": "here"}),
        "agent": [{"name": "main", "directory": "sub", "env": {"OF_TEMPLATE": "x"}}],
    }
    async with world.provisioner(confinement=confined(way)):
        ended = await started(world, template)
        (agent,) = (listed["id"] for listed in ended["data"]["agents"])
        await rig.fact(type="agent_lifecycle", lifecycle="ready")
        call, command = (
            new_id(),
            'cat file; echo " $OF_TEMPLATE"; while read line; do echo "<$line>"; done',
        )
        begun = await ask(
            world, agent, "execute", call, command=command, open_stdin=True, wait_seconds=0
        )
        to = {"exec_id": begun["exec_id"]}
        terminal = {"command": "tty && echo $TERM", "pty": {"cols": 80, "rows": 24}}
        shown = await ask(world, agent, "execute", **terminal)
        assert shown["exit_code"] == 0, shown
        await killed(world)
        await ask(world, agent, "process_input", **to, data="again\n")
        output = ""
        while "<again>" not in output:
            page = await ask(
                world, agent, "process_output", **to, after=len(output), wait_seconds=10
            )
            output += page["output"]
        assert output == "here x\n<again>\n"
        stubborn = "trap '' TERM; echo ready; sleep 100 & wait"
        refuses = await ask(world, agent, "execute", command=stubborn, wait_seconds=0)
        await ask(world, agent, "process_output", exec_id=refuses["exec_id"], wait_seconds=10)
        signal = {"exec_id": refuses["exec_id"], "signal": "KILL"}
        assert await ask(world, agent, "process_signal", **signal) == {"signaled": True}
        await rig.ended(await rig.ask(rig.job(2, "stop", version=rig.version({}))))
    assert find_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace}") == []
    asyncio.get_running_loop()
