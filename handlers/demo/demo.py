"""`workspaced demo`: shows a workspace being created, stopped and started, and prints what happens."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from workspaced import Answer, Owner, State, Workspaced

from handlers.app import Endpoints, locate
from handlers.cli.client import connected, read_events
from handlers.cli.command_table.administration import Demo
from handlers.cli.commands.template import prepare_pools
from handlers.cli.commands.tool import request_and_wait
from handlers.cli.output import as_json, no_note, plain
from handlers.demo.timing import StateRecorder, compare, format_table
from handlers.embedded.child import launch_command
from handlers.errors import WorkspacedError
from handlers.publishing.agent_files import OWN_FOLDER, running_agent
from handlers.runtime.supervise import cancel_and_wait, first_to_end
from handlers.sandbox.processes import end_marked
from handlers.setting_flags import DEFAULT_ORGANIZATION, DEFAULT_OWNER
from handlers.settings import Settings
from handlers.template_archive import load
from statemachine.replay import replay

_CANCEL_AGAIN_AFTER: Final = 2.0
_START_LIMIT: Final = 60.0
_STOP_LIMIT: Final = 15.0
_GRACE: Final = 3.0
"""Seconds that the agents' shutdown scripts may take."""
_LINES: Final = 20
_COMMAND: Final = f"cd hello && git log --oneline && for i in $(seq {_LINES}); do echo line $i of {_LINES}; sleep 0.1; done"
_EXPECTED: Final = [f"line {number} of {_LINES}" for number in range(1, _LINES + 1)]
_KILL_AFTER: Final = _EXPECTED[2]


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(plain(text) + "\n")
    sys.stdout.flush()


def heading(text: str) -> None:
    """Print the heading of a part."""
    say(f"\n== {text}")


async def demo(command: Demo, settings: Settings) -> int:
    """Run the demo on its own servers; return 0 if the replayed log agrees with the recorded states.

    Stops everything that it started however it ends, also after a signal or when stdout is closed.
    """
    loop, signalled = asyncio.get_running_loop(), asyncio.Event()
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        signalled.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)
    directory = Path(tempfile.mkdtemp(prefix="workspaced-demo-"))
    up = _UpProcess(directory)
    story = asyncio.create_task(_run(settings, directory, up))
    waiting = asyncio.create_task(signalled.wait())
    try:
        await first_to_end(story, waiting)
        return story.result() if story.done() else 128 + signals[0]
    finally:
        await cancel_and_wait(story, waiting, cancel_again_after=_CANCEL_AGAIN_AFTER)
        await up.stop()
        if command.keep:
            say(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


async def _run(settings: Settings, directory: Path, up: _UpProcess) -> int:
    settings = settings.model_copy(
        update={"data_dir": directory, "nats_url": None, "database_url": None, "credentials": None}
    )
    heading("PostgreSQL, NATS, worker, gateway and provisioner start on this machine")
    started = time.monotonic()
    await up.start()
    say(f"ready after {time.monotonic() - started:.2f} s, data in {directory}")
    endpoints = locate(settings)
    async with connected(endpoints, "chat-service") as ws:
        return await _Story(endpoints, ws, directory).run()


@dataclass(slots=True)
class _UpProcess:
    """`workspaced up` in a process of its own, as a user would run it."""

    directory: Path
    _process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start `up` and wait until it is ready. Raises WorkspacedError, TimeoutError.

        Ctrl-C in the terminal does not reach it, but it ends if this process is killed.
        """
        up = [sys.executable, "-m", "handlers", "up", "--data-dir", str(self.directory)]
        with (self.directory / "up.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *launch_command(up, stop_signal=signal.SIGTERM, run_as=()),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        if self._process.stdout is None:
            raise WorkspacedError("`workspaced up` has no output")
        line = await asyncio.wait_for(self._process.stdout.readline(), _START_LIMIT)
        if not line:
            end_of_log = (self.directory / "up.log").read_text(errors="replace")[-2000:]
            raise WorkspacedError(f"`workspaced up` ended before it was ready:\n{end_of_log}")

    async def stop(self) -> None:
        """Stop `up`, and then the agents, which would otherwise outlive it."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_LIMIT)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        for workspace in self.directory.glob("provisioner/*/workspaces/*"):
            await end_marked(f"WORKSPACED_WORKSPACE_ID={workspace.name}", grace=_GRACE)


@dataclass(slots=True)
class _Story:
    """The parts of the demo, in their order."""

    endpoints: Endpoints
    ws: Workspaced
    directory: Path

    async def run(self) -> int:
        """Run all parts; return the exit status."""
        templates = await self._push_templates()
        chat, recorder = str(uuid4()), StateRecorder("create")
        async with self._recorded(chat, recorder):
            workspace = await self._create(chat, templates["python"])
            await self._run_command(chat, workspace)
            await self._fail(templates["fails"])
            heading("stop_workspace, then start_workspace")
            recorder.run = "stop"
            await self._tool(chat, "stop_workspace", {})
            recorder.run = "start"
            await self._tool(chat, "start_workspace", {})
            recorder.run = "end"
            log = [entry async for entry in read_events(self.ws, chat)]
            await self._tool(chat, "stop_workspace", {}, quiet=True)  # stop the agent
        agrees = self._replay(log)
        heading("How long each state took to reach the caller")
        say(format_table([row for row in compare(recorder, log) if row.run != "end"]))
        return 0 if agrees else 1

    async def _push_templates(self) -> dict[str, str]:
        heading("Two templates are pushed")
        ids: dict[str, str] = {}
        async with self.endpoints.store() as store:
            for name in ("python", "fails"):
                version, archive = load(_template_folder(name), DEFAULT_ORGANIZATION)
                await store.templates.push(DEFAULT_ORGANIZATION, version, archive)
                ids[name] = version.template_id
                say(f"{name}: template {version.template_id}, {version.size} bytes packed")
        await prepare_pools(self.endpoints)
        return ids

    async def _create(self, chat: str, template: str) -> str:
        """Create the workspace by two calls at once; return its id."""
        heading("create_workspace, and a second call for the same chat that joins it")
        building = asyncio.Event()
        args = {"template_id": template, "parameters": {"project": "hello"}}

        def report(line: str) -> None:
            say(f"  {line}")
            if "  building" in line:
                building.set()

        first = asyncio.create_task(self._call(chat, "create_workspace", args, report))
        started = asyncio.create_task(building.wait())
        try:
            await first_to_end(first, started)
            if first.done():
                first.result()  # raises the error of a call that failed
            second = await self._call(chat, "create_workspace", args, no_note)
            _show_answer("first call", await first)
        finally:
            await cancel_and_wait(first, started)
        _show_answer("second call", second)
        found = await self.ws.rpc("get_chat", chat_id=chat)
        return str(found["workspace"]["id"])

    async def _run_command(self, chat: str, workspace: str) -> None:
        """Run a command through the bus, and kill the agent when it has written a part of its output."""
        heading("A command in the workspace; the agent that started it is killed meanwhile")
        say(f"  $ {_COMMAND}")
        seen = ""
        async with self.ws.chat(chat).execute(_COMMAND) as process:
            async for piece in process:
                for line in piece.splitlines():
                    say(f"  {datetime.now().astimezone():%H:%M:%S.%f}"[:-3] + f"  {line}")
                if _KILL_AFTER in piece and _KILL_AFTER not in seen:
                    killed = self._kill_agents(workspace)
                    say(
                        f"  the agent (process {killed}) is killed with SIGKILL; the command goes on"
                    )
                seen += piece
            ended = await process.wait()
        if ended.exit_code or seen.splitlines()[-_LINES:] != _EXPECTED:
            raise WorkspacedError(f"the command ended with {ended!r} after this output:\n{seen}")
        say(
            "  every line came once; the provisioner started the agent anew, which found the command"
        )

    def _kill_agents(self, workspace: str) -> str:
        """Kill the agents of a workspace; return their pids."""
        folder = self.directory / "provisioner" / "local" / "workspaces" / workspace
        pids = [running_agent(home) for home in (folder / OWN_FOLDER / "agents").iterdir()]
        for pid in filter(None, pids):
            os.kill(pid, signal.SIGKILL)
        return ", ".join(map(str, filter(None, pids)))

    async def _fail(self, template: str) -> None:
        heading("A build that fails: its log, and the error with the build's id")
        args = {"template_id": template, "parameters": {"phase": "build"}}
        await self._tool(str(uuid4()), "create_workspace", args)

    def _replay(self, log: list[dict[str, Any]]) -> bool:
        """Replay the chat's event log; return whether it agrees with the recorded states."""
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
        """Call a tool, and print the chat's messages and the answer unless `quiet`."""
        report = no_note if quiet else lambda line: say(f"  {line}")
        answer = await self._call(chat, tool, args, report)
        if not quiet:
            _show_answer(tool, answer)

    async def _call(
        self, chat: str, tool: str, args: dict[str, Any], report: Callable[[str], None]
    ) -> Answer:
        calling = self.ws.chat(chat, owner=Owner(id=DEFAULT_OWNER, name="demo"))
        return await request_and_wait(
            self.ws, calling, tool, args, uuid4().hex, self.endpoints, report
        )

    @asynccontextmanager
    async def _recorded(self, chat: str, recorder: StateRecorder) -> AsyncIterator[None]:
        """Record the chat's states, as a frontend receives them, while the block runs."""
        async with aclosing(self.ws.chat(chat).watch()) as events:
            await anext(events)  # the chat is new

            async def follow() -> None:
                async for event in events:
                    if isinstance(event, State):
                        recorder.record(event)

            following = asyncio.create_task(follow())
            try:
                yield
            finally:
                await cancel_and_wait(following)


def _show_answer(caller: str, answer: Answer) -> None:
    say(f"  {caller} is answered: {as_json(answer.result)}")


def _template_folder(name: str) -> Path:
    """Return the folder of an example template, in the wheel or in the source tree."""
    installed = Path(str(files("handlers"))) / "templates" / name
    return (
        installed if installed.is_dir() else Path(__file__).parents[2] / "deploy/templates" / name
    )
