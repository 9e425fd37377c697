"""Measures commands in workspaces: one at a time, many chats at once, beside ssh, and keys typed in a terminal."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import workspaced

from tests.bench.cold import plain
from tests.bench.environments import NotInstalledError, environment
from tests.bench.figures import brief, summary
from tests.bench.peer import ROOT
from tests.bench.tables import Table
from tests.rigs.processes import up
from tests.rigs.terminal import Terminal

COMMANDS: Final = 5
"""Commands that each chat runs one after the other."""
_TEMPLATE: Final = """\
name = "bench"
pool = "local"
[build]
start = "true"
[[agent]]
name = "main"
"""
_STARTS: Final = 8
"""Workspaces that are created at the same time."""
_SSH: Final = Path(__file__).with_name("peers") / "ssh.py"
_OWNER: Final = workspaced.Owner(id=str(uuid4()), name="bench")


@dataclass(frozen=True)
class Commands:
    """The times of commands, in milliseconds."""

    chats: int
    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """The system, and its figures."""
    keys: list[float] = field(default_factory=list)
    """From a key that is typed to its echo, through `workspaced exec -t`."""
    not_run: str = ""
    """Why ssh was not measured."""


def commands(chats: int, alone: int, keys: int) -> Commands:
    """Run `true` `alone` times one after the other, then five times in each of `chats` chats at once."""
    if not chats:
        return Commands(0)
    rows, not_run = [], ""
    with tempfile.TemporaryDirectory(prefix="bench-commands-") as place:
        folder = Path(place) / "template"
        folder.mkdir()
        (folder / "template.toml").write_text(_TEMPLATE)
        with up(Path(place) / "data") as running:
            template = running.data("template", "push", folder)["template_id"]
            key = running.seed_file("chat-service")
            ids = [str(uuid4()) for _ in range(chats)]
            figures = asyncio.run(_measure(running.nats, key, template, ids, alone))
            rows.append(("workspaced", figures))
            typed = _keystrokes(running.directory, ids[0], keys)
    try:
        rows.append(("asyncssh, one connection for each chat", _ssh(chats, alone)))
    except NotInstalledError as error:
        not_run = f"ssh: {error}"
    return Commands(chats, rows, typed, not_run)


def table(found: Commands) -> Table:
    """Return the results as a table."""
    rows = [
        [
            name,
            *(brief(figures["alone"][q]) for q in ("p50", "p99")),
            brief(figures["rate"]),
            *(brief(figures["many"][q]) for q in ("p50", "p99")),
        ]
        for name, figures in found.rows
    ]
    head = ("`execute true`, ms", "p50", "p99", f"{found.chats} chats: commands/s", "p50", "p99")
    note = found.not_run
    if found.keys:
        keys = summary(found.keys)
        note += f"From a key to its echo through `exec -t`: median {brief(keys['p50'])} ms, p99 {brief(keys['p99'])} ms."
    return Table(
        "Commands in workspaces, from the request to the answer with the exit status",
        head,
        rows,
        note,
    )


async def _measure(
    nats: str, key: Path, template: str, ids: list[str], alone: int
) -> dict[str, Any]:
    async with workspaced.connect(nats, key=key, service="bench") as ws:
        chats = [ws.chat(chat_id, owner=_OWNER) for chat_id in ids]
        starting = asyncio.Semaphore(_STARTS)

        async def create(chat: workspaced.Chat) -> None:
            async with starting:
                answer = await (await chat.call("create_workspace", {"template_id": template}))
            if not answer.result.get("created"):
                raise RuntimeError(f"no workspace: {answer.result}")

        async def one(chat: workspaced.Chat) -> float:
            asked = time.perf_counter()
            answer = await (await chat.call("execute", {"command": "true"}))
            if answer.result.get("exit_code") != 0:
                raise RuntimeError(f"`true` ended otherwise: {answer.result}")
            return (time.perf_counter() - asked) * 1000

        async def several(chat: workspaced.Chat) -> list[float]:
            return [await one(chat) for _ in range(COMMANDS)]

        await asyncio.gather(*map(create, chats))
        await asyncio.gather(*map(one, chats))  # each agent starts its keeper's program
        single = [await one(chats[0]) for _ in range(alone)]
        began = time.perf_counter()
        many = await asyncio.gather(*map(several, chats))
        return _figures(single, [ms for some in many for ms in some], time.perf_counter() - began)


def _keystrokes(directory: Path, chat: str, keys: int) -> list[float]:
    with Terminal("exec", chat, "-t", "--data-dir", directory, "--", "echo begun; cat") as terminal:
        terminal.wait_for(b"begun")
        terminal.echo_milliseconds(10)
        return terminal.echo_milliseconds(keys)


def _ssh(chats: int, alone: int) -> dict[str, Any]:
    python = str(environment("ssh").python)
    with _ssh_server(python) as port:
        words = {"port": port, "chats": chats, "commands": COMMANDS, "alone": alone}
        done = subprocess.run(
            [python, str(_SSH), "client", json.dumps(words)],
            cwd=ROOT,
            env=plain(),
            stdout=subprocess.PIPE,
            check=True,
        )
    found = json.loads(done.stdout)
    return _figures(found["alone"], found["many"], found["seconds"])


@contextmanager
def _ssh_server(python: str) -> Iterator[int]:
    server = subprocess.Popen(
        [python, str(_SSH), "server"], cwd=ROOT, env=plain(), stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        with server.stdout as stdout:
            yield int(stdout.readline())
    finally:
        server.kill()
        server.wait()


def _figures(single: list[float], many: list[float], seconds: float) -> dict[str, Any]:
    return {"alone": summary(single), "many": summary(many), "rate": len(many) / seconds}
