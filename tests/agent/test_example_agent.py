"""The example in docs/agents.md is an agent that works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from handlers.access.identities import seed_file
from handlers.embedded import Servers
from tests.agent.exec_rig import ExecRig
from tests.rigs.messages import new_id

PAGE = Path(__file__).parents[2] / "docs/agents.md"


async def test_the_example_runs_a_command_once(servers: Servers, tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    seed = seed_file(servers.credentials, "operator").read_text().strip()
    async with ExecRig.on(servers, tmp_path) as rig:
        ids = (rig.chat, rig.workspace_id, new_id(), rig.agent)
        arguments = (servers.nats_url, seed, "_INBOX", *ids)
        agent = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=tmp_path)
        try:
            await rig.answers()
            call, command = new_id(), "cat; echo run >> runs; exit 4"
            first = await rig.done("execute", call, command=command, stdin="in")
            assert await rig.done("execute", call, command=command, stdin="in") == first
            assert "read_file" in await rig.refused("read_file", path="runs")
        finally:
            agent.kill()
            agent.wait()
    assert first == {
        "exec_id": rig.exec_id(call),
        "status": "exited",
        "exit_code": 4,
        "output": "in",
        "offset": 0,
        "next": 2,
    }
    assert (tmp_path / "runs").read_text() == "run\n"
