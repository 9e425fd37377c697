"""The demo's story, told while it happens."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bus import Bus, subjects
from handlers.app import Endpoints, locate
from handlers.cli.client import read_events
from handlers.cli.command_table import DEFAULT_ORGANIZATION, DEFAULT_OWNER, Demo
from handlers.cli.commands.template import prepare_pools
from handlers.cli.commands.tool import request_and_wait
from handlers.cli.output import no_note
from handlers.cli.sanitize import as_json, plain
from handlers.demo.running import RunningUp
from handlers.demo.timing import Watch, lines, table
from handlers.errors import NotFoundError
from handlers.settings import Settings
from handlers.supervise import cancel_and_wait, first_to_end
from handlers.template_archive import load
from statemachine.replay import replay

_CANCEL_AGAIN_AFTER: Final = 2.0


def say(text: str = "") -> None:
    """Print a line of the story at once."""
    sys.stdout.write(plain(text) + "\n")
    sys.stdout.flush()


def heading(text: str) -> None:
    """Begin a part of the story."""
    say(f"\n== {text}")


async def demo(command: Demo, settings: Settings) -> int:
    """Tell the story on servers of its own; return 0 when all of it came out as told.

    However it ends, also by a signal or because nobody reads on, nothing of it runs on.
    """
    loop, told_to_end = asyncio.get_running_loop(), asyncio.Event()
    signals: list[int] = []

    def note(number: int) -> None:
        signals.append(number)
        told_to_end.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, note, number)
    directory = Path(tempfile.mkdtemp(prefix="workspaced-demo-"))
    up = RunningUp(directory)
    story = asyncio.create_task(_told(settings, directory, up))
    waiting = asyncio.create_task(told_to_end.wait())
    try:
        await first_to_end(story, waiting)
        if story.done():
            return story.result()
        return 128 + signals[0]
    finally:
        await cancel_and_wait(story, waiting, cancel_again_after=_CANCEL_AGAIN_AFTER)
        await up.end()
        if command.keep:
            say(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


async def _told(settings: Settings, directory: Path, up: RunningUp) -> int:
    settings = settings.model_copy(
        update={"data_dir": directory, "nats_url": None, "database_url": None, "credentials": None}
    )
    heading("PostgreSQL, NATS, worker, gateway and provisioner start on this machine")
    began = time.monotonic()
    await up.start()
    say(f"ready after {time.monotonic() - began:.2f} s, data in {directory}")
    endpoints = locate(settings)
    async with endpoints.bus("chat-service") as bus, endpoints.bus("operator") as operator:
        return await _Story(endpoints, bus, operator, directory).tell()


@dataclass(slots=True)
class _Story:
    """The parts in their order; each says what it shows."""

    endpoints: Endpoints
    bus: Bus
    operator: Bus
    directory: Path

    async def tell(self) -> int:
        """Tell all of it."""
        templates = await self._templates()
        chat, watch = str(uuid4()), Watch("create")
        async with self._watched(chat, watch):
            workspace = await self._create(chat, templates["python"])
            await self._command(workspace)
            await self._failing(templates["fails"])
            heading("stop_workspace, then start_workspace")
            watch.run = "stop"
            await self._tool(chat, "stop_workspace", {})
            watch.run = "start"
            await self._tool(chat, "start_workspace", {})
            watch.run = "end"
            log = [entry async for entry in read_events(self.operator, chat)]
            await self._tool(chat, "stop_workspace", {}, quiet=True)  # leave no agent behind
        agrees = self._replay(log)
        heading("How long each state took to reach the caller")
        say(table([line for line in lines(watch, log) if line.run != "end"]))
        return 0 if agrees else 1

    async def _templates(self) -> dict[str, str]:
        heading("Two templates are pushed")
        ids: dict[str, str] = {}
        async with self.endpoints.store() as store:
            for name in ("python", "fails"):
                version, archive = load(_folder(name), DEFAULT_ORGANIZATION)
                await store.templates.push(DEFAULT_ORGANIZATION, version, archive)
                ids[name] = version.template_id
                say(f"{name}: template {version.template_id}, {version.size} bytes packed")
        await prepare_pools(self.endpoints)
        return ids

    async def _create(self, chat: str, template: str) -> str:
        heading("create_workspace, and a second call for the same chat that joins it")
        building = asyncio.Event()
        args = {"template_id": template, "parameters": {"project": "hello"}}

        def tell(line: str) -> None:
            say(f"  {line}")
            if "  building" in line:
                building.set()

        first = asyncio.create_task(self._ask(chat, "create_workspace", args, tell))
        begun = asyncio.create_task(building.wait())
        try:
            await first_to_end(first, begun)
            if first.done():
                first.result()  # raises the error of a call that failed
            second = await self._ask(chat, "create_workspace", args, no_note)
            self._show("first call", await first)
        finally:
            await cancel_and_wait(first, begun)
        self._show("second call", second)
        reply = await self.operator.request(
            subjects.rpc("get_chat"), json.dumps({"chat_id": chat}).encode(), timeout=10
        )
        return str(json.loads(reply.data)["workspace"]["id"])

    async def _command(self, workspace: str) -> None:
        heading("A command in the finished workspace's directory")
        folder = self.directory / "provisioner" / "local" / "workspaces" / workspace
        command = "pwd; ls; cd hello && git log --oneline && ../.venv/bin/python --version"
        say(f"  $ {command}")
        process = await asyncio.create_subprocess_shell(
            command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        for line in output.decode(errors="replace").splitlines():
            say(f"  {line}")
        if process.returncode:
            raise NotFoundError(f"the command ended with status {process.returncode}")

    async def _failing(self, template: str) -> None:
        heading("A build that fails: its log, and the error with the build's id")
        args = {"template_id": template, "parameters": {"phase": "build"}}
        await self._tool(str(uuid4()), "create_workspace", args)

    def _replay(self, log: list[dict[str, Any]]) -> bool:
        heading("The event log of the chat, replayed")
        for entry in log:
            version = "" if entry["version"] is None else f"version {entry['version']}"
            kind = entry["event"]["type"].removeprefix("workspaced.")
            say(
                f"  {entry['seq']:>3}  {kind:<22} {entry['outcome']:<8} {entry['state_after']:<17} {version}"
            )
        (chat,) = replay(log).values()
        say(f"  path: {' -> '.join(chat.path)}")
        say("  it folds to what was recorded" if not chat.differences else f"  {chat.differences}")
        return not chat.differences

    async def _tool(
        self, chat: str, tool: str, args: dict[str, Any], *, quiet: bool = False
    ) -> None:
        answer = await self._ask(
            chat, tool, args, no_note if quiet else lambda line: say(f"  {line}")
        )
        if not quiet:
            self._show(tool, answer)

    async def _ask(self, chat: str, tool: str, args: dict[str, Any], tell: Any) -> dict[str, Any]:
        data = {
            "call_id": uuid4().hex,
            "tool": tool,
            "args": args,
            "organization_id": DEFAULT_ORGANIZATION,
            "owner_id": DEFAULT_OWNER,
            "owner_name": "demo",
        }
        return await request_and_wait(self.bus, chat, data, tell)

    def _show(self, what: str, resolved: dict[str, Any]) -> None:
        say(f"  {what} is answered: {as_json(resolved['result'])}")

    @asynccontextmanager
    async def _watched(self, chat: str, watch: Watch) -> AsyncIterator[None]:
        """Note the chat's states as a frontend would see them."""
        async with self.bus.subscribe(subjects.ui_state(chat)) as messages:

            async def follow() -> None:
                async for message in messages:
                    watch.note(message)

            following = asyncio.create_task(follow())
            try:
                yield
            finally:
                await cancel_and_wait(following)


def _folder(name: str) -> Path:
    """Find an example template: in the wheel, or in the source tree."""
    installed = Path(str(files("handlers"))) / "templates" / name
    return (
        installed if installed.is_dir() else Path(__file__).parents[2] / "deploy/templates" / name
    )
