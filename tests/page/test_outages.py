"""The page while the servers behind it are killed and started again: nothing is missing or doubled on it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.cli.template_folders import folder
from tests.page.conftest import OpenTab, Tab
from tests.rigs.browser import needs_chromium
from tests.rigs.fleet import PATIENT, Fleet, fleet_on
from tests.rigs.messages import new_id
from tests.rigs.processes import Process, agents_using, kill_processes, processes_using, run
from tests.rigs.servers import free_port, restartable_servers, servers_of

pytestmark = needs_chromium

LINES = 60
TEMPLATE = f"""
name = "counting"
pool = "local"

[build]
start = "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep 0.1; done"

[[agent]]
name = "main"
"""


COMMAND = "echo written 1; until [ -e go ]; do sleep 0.05; done; echo written 2"
CALL = """([tool, args]) => fetch(`/v1/chats/${location.hash.split("/")[2]}/tools/${tool}`, {
  method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({args}),
}).then((answer) => answer.json())"""


async def call(tab: Tab, tool: str, args: dict[str, object]) -> None:
    """Call a tool of the chat that the tab shows, with the rights of its session."""
    answer = await tab.page.evaluate(CALL, [tool, args])
    assert answer.get("is_error") is False, answer


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory; at the end, the agents of workspaces in it are killed, which outlive their provisioner."""
    yield tmp_path
    kill_processes(processes_using(tmp_path))


async def test_nothing_is_missing_or_doubled_after_kills(home: Path, open_tab: OpenTab) -> None:
    port, chat = free_port(), new_id()
    async with restartable_servers(home / "servers") as (nats, postgres):
        servers = servers_of(nats, postgres)
        async with fleet_on(servers, postgres.url, home / "fleet", PATIENT) as fleet:
            worker = await fleet.start("worker")
            gateway = await fleet.start("gateway", "--http-port", str(port))
            await fleet.start("provisioner")
            flags = ("--credentials", servers.credentials)

            async def command(*words: str | Path) -> str:
                done = await asyncio.to_thread(run, *words, *flags, env=fleet.urls())
                assert done.returncode == 0, done.stderr
                return done.stdout

            await command("template", "push", folder(home, TEMPLATE))
            link = json.loads(await command("page"))["page"]
            tab = await open_tab(link)
            await tab.open(f"/chat/{chat}")
            await tab.shows(".pill.big", "No workspace")
            creating = asyncio.create_task(command("create", "counting", "--chat", chat))

            await tab.shows(".line", "line 3")
            await tab.page.reload()
            await tab.shows(".line", "line 6")
            await fleet.end(gateway)
            await tab.shows(".live", "reconnecting")
            gateway = await fleet.start("gateway", "--http-port", str(port))
            await tab.shows(".live", "live")
            await postgres.stop(signal.SIGKILL)
            await tab.open("/")
            await tab.shows("#banner", "the database is unavailable")
            await tab.page.reload()
            await tab.shows(".signin", "The database is unavailable")
            await postgres.start()
            await tab.shows(".row", "counting")
            await tab.hides("#banner")
            await tab.open(f"/chat/{chat}")
            await fleet.end(worker)
            async with fleet.reconnected():
                await nats.stop(signal.SIGKILL)
                await nats.start()
            await fleet.start("worker")

            await tab.shows(".pill.big", "Ready")
            await tab.shows(".line", f"line {LINES}")
            numbered = tab.page.locator(".line", has_text=re.compile("^line "))
            await expect(numbered).to_have_text([f"line {n}" for n in range(1, LINES + 1)])
            await expect(tab.page.locator(".phase.done")).to_have_count(3)
            moves = tab.page.locator("[aria-label='Event log'] td:nth-child(4)")
            await expect(moves.filter(has_text="Building → Connecting")).to_have_count(1)
            await creating
            await _a_page_opened_during_a_command_shows_all_of_it(tab)
            await _a_shell_goes_on(tab, fleet, chat, gateway, home)
            await command("stop", chat)
            await tab.shows(".notice", "The workspace was stopped, and the shell with it.")


async def _a_page_opened_during_a_command_shows_all_of_it(tab: Tab) -> None:
    await call(tab, "execute", {"command": COMMAND, "wait_seconds": 0})
    await tab.shows(".line", "written 1")
    await tab.page.reload()
    await tab.shows(".pill.big", "Ready")
    await tab.shows(".live", "live")
    await call(tab, "write_file", {"path": "go", "content": ""})
    await tab.shows(".line", "written 2")
    written = tab.page.locator(".line", has_text=re.compile("^written "))
    await expect(written).to_have_text(["written 1", "written 2"])
    await tab.shows(".stagename", f"$ {COMMAND}")
    await tab.shows(".stagecount", "done")


async def _a_shell_goes_on(tab: Tab, fleet: Fleet, chat: str, gateway: Process, home: Path) -> None:
    """Use a terminal while its gateway is away, and after its agent was killed; leave a program that runs in it."""
    keys = tab.page.keyboard
    await tab.page.goto(f"{tab.url}/page/terminal.html#{chat}")
    await expect(tab.page.locator(".rows")).to_contain_text(re.compile("[$#]"))
    await keys.type("for i in $(seq 25); do echo tick $i; sleep 0.05; done\n")
    await tab.shows(".tline", "tick 3")
    await fleet.end(gateway)
    await tab.shows(".live", "reconnecting")
    await keys.type("echo typed while no gateway a''nswers\n")
    await tab.shows(".notice", "The gateway can't be reached.")
    await fleet.start("gateway", "--http-port", tab.url.rpartition(":")[2])
    await tab.shows(".tline", "typed while no gateway answers")
    # The terminal may echo what was typed at the beginning of a line of output.
    ticks = tab.page.locator(".tline", has_text=re.compile(r"tick \d+\s*$"))
    await expect(ticks).to_have_text([re.compile(rf"tick {n}\s*$") for n in range(1, 26)])
    await tab.hides(".notice")
    kill_processes(agents_using(home))
    await keys.type("exit 3\n")
    await tab.shows(".notice", "The shell ended with status 3.")
    await tab.page.click("text=New shell")
    await expect(tab.page.locator(".rows")).to_contain_text(re.compile("[$#]"))
    # Unlike a shell, cat ends with SIGTERM. What is typed before it runs has no echo.
    await keys.type("exec sh -c 'echo be''gun; exec cat'\n")
    await tab.shows(".tline", "begun")
    await keys.type("echoed\n")
    await expect(tab.page.locator(".tline", has_text=re.compile("^echoed"))).to_have_count(2)
