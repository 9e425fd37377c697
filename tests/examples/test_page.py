"""The example page follows a chat through restarts of NATS and gateways, in Node and in Chromium."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.rigs.browser import chromium, needs_chromium, violations_of_accessibility
from tests.rigs.client import role_options
from tests.rigs.fleet import PATIENT, Fleet, fleet_on
from tests.rigs.messages import Event, call_data, cloud_event, log_line, new_id, tool_request
from tests.rigs.processes import ROOT, Process
from tests.rigs.reliable_client import ReliableClient, kept_connected
from tests.rigs.servers import Nats, free_port, restartable_servers, servers_of
from tests.rigs.world import ORGANIZATION

EXAMPLE = ROOT / "docs" / "examples" / "page"
SCHEMAS = ROOT / "docs" / "schemas"
TIMEOUT = 60.0
OFFLINE = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm: install Node.js 20"),
]


async def run(folder: Path, *words: str | Path) -> str:
    """Run a program in a folder; return what it printed. Fails if it fails."""
    process = await asyncio.create_subprocess_exec(
        *map(str, words),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode()
    if process.returncode and any(reason in printed for reason in OFFLINE):
        pytest.skip("the registry of npm can't be reached")
    assert process.returncode == 0, printed
    return printed


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install and build the example in a folder of the tests, with the module that follows a chat by itself."""
    folder = tmp_path_factory.mktemp("page") / "page"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    quiet = ("--no-audit", "--no-fund", "--prefer-offline")
    await run(folder, "npm", "install", *quiet)
    bundle = ("src/follow.ts", "--bundle", "--format=cjs", "--outfile=follow.cjs")
    async with asyncio.TaskGroup() as group:
        group.create_task(run(folder, "npm", "run", "build"))
        group.create_task(run(folder, "node_modules/.bin/esbuild", *bundle, "--platform=node"))
    return folder


@dataclass
class Backend:
    """The page's own server, which a test stops and starts."""

    folder: Path
    nats: Nats
    key: Path
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, *flags: str) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                self.folder / "backend.py",
                self.nats.url,
                self.nats.websocket,
                self.key,
            ),
            *("--port", str(self.port), *flags),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            while b"Running on" not in (line := await self.process.stdout.readline()):
                assert line, "the backend ended"

    async def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            self.process = None


@dataclass
class Stage:
    """Servers, roles, the page's server, and a provisioner that the tests play."""

    nats: Nats
    fleet: Fleet
    backend: Backend
    template: str
    gateway: Process
    service: ReliableClient
    provisioner: ReliableClient
    operator: ReliableClient

    async def kill_gateway(self) -> None:
        await self.fleet.end(self.gateway)

    async def start_gateway(self) -> None:
        self.gateway = await self.fleet.start("gateway")

    async def building(self) -> tuple[str, Event]:
        """Ask for a workspace; return the chat and its build as soon as there is one."""
        chat, states = new_id(), asyncio.Queue[Event]()

        async def hear(message: Any) -> None:
            states.put_nowait(json.loads(message.data)["data"])

        hearing = await self.service.client.subscribe(f"workspaced.ui.{chat}.state", cb=hear)
        owner = {"organization_id": ORGANIZATION, "owner_id": new_id(), "owner_name": "ann"}
        args = {"template_id": self.template}
        data = call_data("create", "create_workspace", args, **owner)
        await self.service.store(tool_request("mybot", chat, data))
        async with asyncio.timeout(TIMEOUT):
            state = await states.get()
        await hearing.unsubscribe()
        return chat, {"chat_id": chat, "build_id": state["build"]["id"]}

    async def write(self, build: Event, *numbers: int) -> None:
        """Store lines of the build's log."""
        for number in numbers:
            subject, event = log_line("/provisioner/forge", build, number, line(number))
            await self.provisioner.store(event, subject)

    async def revoke(self, public_key: str) -> None:
        await self.operator.rpc("revoke_credential", public_key=public_key)


def line(number: int) -> str:
    return f"line {number} of the build\n"


def text(numbers: Iterable[int]) -> str:
    return "".join(map(line, numbers))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(built: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    home = tmp_path_factory.mktemp("stage")
    async with AsyncExitStack() as stack:
        nats, postgres = await stack.enter_async_context(restartable_servers(home))
        fleet = await stack.enter_async_context(
            fleet_on(servers_of(nats, postgres), postgres.url, home, PATIENT)
        )
        await fleet.start("worker")
        gateway = await fleet.start("gateway")
        deployment = await fleet.deployment()
        backend = Backend(built, nats, fleet.credentials / "chat-service.nk")
        stack.push_async_callback(backend.stop)

        async def client(role: str) -> ReliableClient:
            options = role_options(fleet.credentials, role)
            kept = kept_connected(ReliableClient(nats.url, options))
            return await stack.enter_async_context(kept)

        yield Stage(
            nats,
            fleet,
            backend,
            str(deployment.templates["plain"]["template_id"]),
            gateway,
            *[await client(role) for role in ("chat-service", "provisioner", "operator")],
        )


@pytest_asyncio.fixture(loop_scope="module")
async def backend(stage: Stage) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Return a function that starts the page's server; it ends with the test."""
    yield stage.backend.start
    await stage.backend.stop()


async def test_the_types_are_made_from_the_schemas(built: Path, tmp_path: Path) -> None:
    made = tmp_path / "types.ts"
    async with asyncio.TaskGroup() as group:
        group.create_task(run(built, "node", "generate-types.mjs", SCHEMAS, made))
        group.create_task(run(built, "npm", "run", "check"))

    assert made.read_text() == (EXAMPLE / "src" / "types.ts").read_text(), "run `npm run types`"


class Following:
    """The page's module in Node."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.heard: list[Event] = []
        self.lines: list[str] = []

    async def until(self, kind: str, **wanted: Any) -> Event:
        """Read what it reports until something fits."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            while True:
                printed = await self.process.stdout.readline()
                assert printed, f"it ended after {self.heard}"
                event: Event = json.loads(printed)
                self.heard.append(event)
                if event["kind"] == "line":
                    self.lines.insert(event["index"], event["output"])
                if event["kind"] == kind and wanted.items() <= event.items():
                    return event

    async def has(self, numbers: Iterable[int]) -> None:
        """Wait for the lines; fail if there are others, or if one is missing, doubled or out of order."""
        wanted = list(map(line, numbers))
        while len(self.lines) < len(wanted):
            await self.until("line")
        assert self.lines == wanted


@asynccontextmanager
async def following(stage: Stage, chat: str) -> AsyncIterator[Following]:
    process = await asyncio.create_subprocess_exec(
        *("node", Path(__file__).parent / "follow.mjs", stage.backend.folder / "follow.cjs"),
        *(stage.backend.url, chat),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        yield Following(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_keys_are_renewed_and_what_is_wrong_with_one_is_told_apart(
    stage: Stage, backend: Callable[..., Awaitable[None]]
) -> None:
    await backend("--ttl", "3")
    chat, build = await stage.building()
    await stage.write(build, 1, 2)
    async with following(stage, chat) as page:
        await page.until("status", status="live")
        await page.has([1, 2])

        for number in (3, 4):  # each renewal connects anew, and nothing is reported twice
            await page.until("key")
            await stage.write(build, number)
        await page.has([1, 2, 3, 4])
        assert {e["status"] for e in page.heard if e["kind"] == "status"} == {"connecting", "live"}

        await stage.backend.stop()
        await page.until("status", status="expired")
        await stage.write(build, 5)
        await backend("--ttl", "600")
        key = await page.until("key")
        await page.until("status", status="live")
        await page.has([1, 2, 3, 4, 5])

        await stage.revoke(key["public_key"])
        await page.until("status", status="revoked")
        assert await page.process.wait() == 0
        states = [event for event in page.heard if event["kind"] == "state"]
        assert [state["version"] for state in states] == sorted({s["version"] for s in states})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@asynccontextmanager
async def opened(browser: Browser, stage: Stage, chat: str) -> AsyncIterator[Page]:
    """Open the page; fail at the end if it reported an error of a script or of its policy."""
    page = await browser.new_page()
    page.set_default_timeout(TIMEOUT * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Policy" in said.text else None)
    try:
        await page.goto(f"{stage.backend.url}/?chat={chat}")
        yield page
        assert not errors
    finally:
        await page.close()


async def says(page: Page, *statuses: str) -> None:
    """Wait until the page has one of these statuses."""
    wanted = ", ".join(f"#status[data-status={status}]" for status in statuses)
    await expect(page.locator(wanted)).to_be_visible(timeout=TIMEOUT * 1000)


async def shows(page: Page, numbers: Iterable[int]) -> None:
    """Wait for the log: each line once and in order."""
    log = page.locator("#logs pre").first
    wanted = text(numbers)
    await page.wait_for_function(
        "last => document.querySelector('#logs')?.textContent.includes(last)",
        arg=wanted.splitlines()[-1],
    )
    assert await log.text_content() == wanted


@needs_chromium
async def test_a_page_opened_in_the_middle_of_a_build_loses_and_doubles_nothing_over_restarts(
    stage: Stage, browser: Browser, backend: Callable[..., Awaitable[None]]
) -> None:
    await backend()
    chat, build = await stage.building()
    await stage.write(build, *range(1, 4))
    async with opened(browser, stage, chat) as page:
        await says(page, "live")
        await expect(page.locator("#state")).to_have_text("building")
        await shows(page, range(1, 4))
        await stage.write(build, 4)
        await shows(page, range(1, 5))
        assert await violations_of_accessibility(page) == []

        # NATS, then the gateway.
        await stage.nats.stop(signal.SIGKILL)
        await says(page, "no_nats")
        await stage.nats.start()
        await stage.write(build, 5, 6)
        await says(page, "live")
        await shows(page, range(1, 7))
        await stage.kill_gateway()
        await stage.write(build, 7)
        await shows(page, range(1, 8))
        await stage.write(
            {**build, "build_id": new_id()}, 1
        )  # a new build, of which more may be stored
        await says(page, "log_waits")
        await expect(page.locator("#logs pre").nth(1)).to_have_text(line(1))
        await stage.start_gateway()
        await says(page, "live")

        # The gateway, then NATS.
        await stage.kill_gateway()
        await stage.nats.stop(signal.SIGKILL)
        await says(page, "no_nats")
        await stage.nats.start()
        await stage.write(build, 8, 9)
        await says(page, "no_gateway")
        await expect(page.locator("#status")).to_contain_text("No gateway answers")
        async with following(stage, chat) as another:  # which has no key yet
            await another.until("status", status="no_gateway")
            await stage.start_gateway()
            await another.until("status", status="live")
            await another.has(range(1, 10))
        await says(page, "live")
        await stage.write(build, 10)
        await shows(page, range(1, 11))

        await page.reload()
        await says(page, "live")
        await shows(page, range(1, 11))


@needs_chromium
async def test_a_page_shows_commands_as_text_and_says_that_its_key_expired_or_was_revoked(
    stage: Stage, browser: Browser, backend: Callable[..., Awaitable[None]]
) -> None:
    await backend("--exec", "--ttl", "3")
    chat, build = await stage.building()
    hostile = "<img src=x onerror=alert(1)>\x1b]8;;javascript:alert(1)\x07link\x1b[31m red\n"
    subject, event = log_line("/provisioner/forge", build, 1, hostile)
    await stage.provisioner.store(event, subject)
    keys: list[str] = []

    async with opened(browser, stage, chat) as page:
        await says(page, "live")
        await expect(page.locator("#logs pre")).to_have_text(
            "<img src=x onerror=alert(1)>link red\n"
        )

        agent, execution = new_id(), "run"
        started = {"call_id": "c", "command": "echo <b>", "cwd": "/"}
        pieces = [
            {"offset": 0, "next": 4, "output": "<b>\n"},
            {"offset": 6, "next": 8, "output": "c\n"},
        ]
        said = [("started", started), *[("output", piece) for piece in pieces for _ in range(2)]]
        for name, data in [*said, ("exited", {"exit_code": 3, "size": 8})]:
            told = {"exec_id": execution, **data}
            event = cloud_event(f"exec_{name}", f"/agent/{agent}", chat, told)
            await stage.operator.store(event, f"workspaced.exec.{chat}.{agent}.{execution}")
        await expect(page.locator("#commands h3")).to_have_text("$ echo <b>")
        await expect(page.locator("#commands pre")).to_have_text(
            "<b>\n[2 bytes were not received]\nc\n[exit 3]\n"
        )

        await stage.backend.stop()
        await says(page, "expired")
        await expect(page.locator("#status")).to_contain_text("The key has expired")

        async with page.expect_response(
            lambda answer: answer.ok and "/key" in answer.url
        ) as answer:
            await backend()
        await says(page, "live")
        keys.append((await (await answer.value).json())["public_key"])
        await stage.revoke(keys[-1])
        await says(page, "revoked")
        await expect(page.locator("#status")).to_contain_text("The key was revoked")

        await page.goto(f"{stage.backend.url}/?chat=nonsense")
        await says(page, "denied")
        await expect(page.locator("#status")).to_contain_text("chat_id must be")
        await page.goto(stage.backend.url)
        await expect(page.locator("#status")).to_contain_text("Name a chat in the address")


async def test_the_page_s_server_gives_no_key_to_foreign_pages(
    stage: Stage, backend: Callable[..., Awaitable[None]]
) -> None:
    await backend()
    url = f"{stage.backend.url}/chats/{new_id()}/key"
    for origin in ("Origin: http://evil.example", f"Origin: http://localhost:{stage.backend.port}"):
        printed = await run(stage.backend.folder, "curl", "-s", "-X", "POST", "-H", origin, url)
        assert printed.startswith(f"Only the page at {stage.backend.url}/")
