"""An agent that can't run its script reports that, and a stop ends any agent at once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from bus import Bus
from handlers.agent import scripts
from handlers.publishing.agent_files import AgentCredential
from tests.agent.conftest import Living
from tests.agent.test_agent import lifecycle
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.rig import Rig

LONG = "x" * 140_000
CAN_NOT_RUN: dict[str, tuple[dict[str, Any], str]] = {
    "name with equals": ({"env": {"A=B": "1"}}, "'A=B'"),
    "empty name": ({"env": {"": "1"}}, "its name is empty"),
    "NUL in a value": ({"env": {"A": "\0"}}, "the variable 'A'"),
    "long value": ({"env": {"A": LONG}}, "140,000 bytes"),
    "all together": ({"env": {f"A{n}": LONG[:130_000] for n in range(20)}}, "together"),
    "long script": ({"script": f"true # {LONG}"}, "put it into a file"),
    "NUL in the script": ({"script": "true \0"}, "NUL"),
    "no directory": ({"directory": Path("/nowhere/at/all")}, "/nowhere/at/all"),
    "not executable": ({"script": "./plain"}, "exited with status 126"),
    "no such program": ({"script": "./missing"}, "exited with status 127"),
}


def written(rig: Rig) -> str:
    return "".join(line["data"]["output"] for line in rig.events("workspaced.log."))


@pytest.mark.parametrize("case", CAN_NOT_RUN)
@pytest.mark.parametrize("stage", ["startup", "shutdown"])
async def test_b23_a_script_that_cannot_run_is_reported_with_an_explanation(
    rig: Rig, living: Living, tmp_path: Path, stage: str, case: str
) -> None:
    options, words = CAN_NOT_RUN[case]
    (tmp_path / "plain").write_text("true\n")
    script = {f"{stage}_script": options.get("script", "true")}
    more = {key: value for key, value in options.items() if key != "script"}
    reached = {"startup": "start_error", "shutdown": "shutdown_error"}[stage]
    async with living(**script, **more) as agent:
        await lifecycle(rig, "start_error" if stage == "startup" else "ready")
        agent.stop()
        async with asyncio.timeout(20):
            await agent.running

    await lifecycle(rig, reached)
    await rig.until(lambda: words in written(rig), words)


@pytest.mark.parametrize("stage", ["startup", "shutdown"])
async def test_any_exception_is_reported_as_start_error(
    rig: Rig, living: Living, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scripts.DetachedCommand, "start", broken)
    monkeypatch.setattr(scripts, "Shell", broken)
    async with living(**{f"{stage}_script": "true"}) as agent:
        await rig.fact(type="agent_connected")
        await lifecycle(rig, "start_error" if stage == "startup" else "ready")
        agent.stop()
        await agent.running

    await lifecycle(rig, "start_error" if stage == "startup" else "shutdown_error")
    await rig.until(lambda: "RuntimeError: a bug" in written(rig))


async def test_b03_the_exit_status_is_logged_even_if_the_log_is_full(
    rig: Rig, living: Living
) -> None:
    async with living(startup_script="yes | head -c 300000; exit 5", log_limit=10_000):
        await lifecycle(rig, "start_error")
        await rig.until(lambda: "the startup script exited with status 5" in written(rig))

    assert "limit of this build's log is reached" in written(rig)
    assert written(rig).count("y") < 11_000


async def test_a_stop_during_the_connect_is_obeyed(
    rig: Rig, server: MemoryServer, living: Living
) -> None:
    """Python 3.11 loses a cancellation that arrives when the socket opens."""
    connecting = asyncio.Event()

    async def deaf(url: str, credential: AgentCredential) -> Bus:
        connecting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return MemoryBus(server)
        raise AssertionError

    async with living(deaf, startup_script="true") as agent:
        await connecting.wait()
        agent.stop()
        async with asyncio.timeout(10):
            await agent.running


async def test_the_shutdown_script_runs_after_the_startup_script_has_ended(
    rig: Rig, living: Living, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    startup = (
        "trap 'sleep 2; echo startup >> order; exit 0' TERM; echo > gate; sleep 60 & wait; wait"
    )
    async with living(startup_script=startup, shutdown_script="echo shutdown >> order"):
        await asyncio.to_thread(gate.read_text)

    assert (tmp_path / "order").read_text().split() == ["startup", "shutdown"]
