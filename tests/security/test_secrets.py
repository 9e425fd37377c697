"""Puts recognizable secrets into every credential, and searches everything that others can read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from nats.aio.msg import Msg

from tests.cli.template_folders import folder
from tests.rigs.client import ChatService, Participant, connected, credential_options, role_options
from tests.rigs.messages import new_id
from tests.rigs.processes import Process, Up, kill_processes, processes_using, run, up

IN_DATABASE_URL, IN_NATS_URL, IN_PARAMETER = (f"planted-{new_id()}" for _ in range(3))
TEMPLATE = """
name = "{name}"
pool = "apart"

[[parameter]]
name = "token"
type = "string"
required = true
sensitive = true

[build]
start = "env; echo $WORKSPACED_PARAM_TOKEN >&2; exit {status}"

[[agent]]
name = "main"
startup_script = "env"
"""


@dataclass
class Findings:
    """Texts that others could read, each with the place where it was found."""

    seen: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, what: str | bytes) -> None:
        text = what.decode(errors="replace") if isinstance(what, bytes) else what
        self.seen.append((where, text))

    def of(self, secret: str) -> list[str]:
        return [where for where, text in self.seen if secret in text]


@asynccontextmanager
async def listening(up: Up, findings: Findings) -> AsyncIterator[Participant]:
    """Record every message as an operator receives it."""

    async def hear(message: Msg) -> None:
        findings.add(message.subject, f"{message.headers} ".encode() + message.data)

    async with connected(
        Participant(), up.nats, **role_options(up.directory / "credentials", "operator")
    ) as it:
        await it.client.subscribe("workspaced.>", cb=hear)
        await it.flush()
        yield it


async def stored(operator: Participant, findings: Findings) -> None:
    """Record the messages of every stream."""
    for stream in ("STATE", "LOG", "RESULT", "DEAD", "TIMER", "PRESENCE"):
        state = (await operator.js.stream_info(f"WORKSPACED_{stream}")).state
        for sequence in range(state.first_seq, state.last_seq + 1 if state.messages else 0):
            try:
                message = await operator.js.get_msg(f"WORKSPACED_{stream}", sequence)
            except Exception:  # noqa: BLE001  # replaced since
                continue
            findings.add(f"stream {stream}", f"{message.headers} ".encode() + (message.data or b""))


def looked_at(pids: list[int], findings: Findings, *, environment_of: list[int]) -> None:
    """Record the command lines of all processes, and environments that must contain no secret."""
    for pid in pids:
        findings.add(f"command line of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes())
    for pid in environment_of:
        findings.add(f"environment of {pid}", Path(f"/proc/{pid}/environ").read_bytes())


def readable(directory: Path, findings: Findings) -> None:
    """Record all files that others could read if they could enter the data directory."""
    for parent, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if (Path(parent) / name).lstat().st_mode & 0o011]
        for name in files:
            path = Path(parent) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o044:
                findings.add(f"file {path}", path.read_bytes())


def failures(up: Up, tmp_path: Path, findings: Findings) -> None:
    """Cause all errors that involve a secret."""
    nowhere = "127.0.0.1:1"
    database = f"postgresql://ada:{IN_DATABASE_URL}@"
    strange = tmp_path / "strange.nk"
    strange.write_text(f"SU{IN_PARAMETER}")
    bad = folder(tmp_path, f'name = "x"\nunknown = "{"{"}', "bad")
    for words, variables in (
        (("worker",), {"NATS_URL": up.nats, "DATABASE_URL": f"{database}no host:no port/x"}),
        (("chat", "list"), {"NATS_URL": f"nats://ada:{IN_NATS_URL}@{nowhere}"}),
        (("chat", "list"), {"NATS_URL": f"nats://ada:{IN_NATS_URL}@no port:at all"}),
        (("chat", "list", "--credentials", strange), {"NATS_URL": up.nats}),
        (("template", "push", bad), {"DATABASE_URL": f"{database}{nowhere}/x"}),
    ):
        env = {f"WORKSPACED_{name}": value for name, value in variables.items()}
        done = run(*words, "--data-dir", up.directory, env=env)
        assert "Traceback" not in done.stderr, done.stderr
        findings.add(f"output of {' '.join(map(str, words))}", done.stdout + done.stderr)
    env = {"WORKSPACED_NATS_URL": up.nats, "WORKSPACED_DATABASE_URL": f"{database}{nowhere}/x"}
    waiting = Process("worker", "--data-dir", up.directory, env=env)
    try:
        waiting.wait_for_output("can't open the database")
    finally:
        waiting.kill()
    findings.add("what a worker says that waits for its database", waiting.output())


async def test_planted_secrets_appear_nowhere(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings, of_agents = Findings(), Findings()
    password = urlsplit(database_url).password
    assert password
    environment = {"WORKSPACED_DATABASE_URL": database_url}
    with up(tmp_path / "data", env=environment) as running:
        findings.add("the ready line", json.dumps(running.ready))
        with_user = running.nats.replace("nats://", f"nats://ada:{IN_NATS_URL}@")
        apart = Process(
            *(
                "provisioner",
                "--pool",
                "apart",
                "--name",
                "apart",
                "--data-dir",
                tmp_path / "apart",
            ),
            env={
                "WORKSPACED_NATS_URL": with_user,
                "WORKSPACED_CREDENTIALS": str(running.seed_file("provisioner")),
            },
        )
        try:
            await lived(running, tmp_path, findings)
            servers = processes_using(running.directory, "nats-server")
            agents = processes_using(tmp_path / "apart", "handlers.agent")
            everybody = processes_using(tmp_path)
            assert servers
            assert agents
            looked_at(everybody, findings, environment_of=servers)
            looked_at([], of_agents, environment_of=agents)
            failures(running, tmp_path, findings)
            for log in tmp_path.rglob("*.log"):
                findings.add(f"log {log}", log.read_bytes())
        finally:
            apart.stop()
            kill_processes(processes_using(tmp_path / "apart"))
        readable(running.directory, findings)
        readable(tmp_path / "apart", findings)
        credentials = running.directory / "credentials"
        seeds = {file.name: file.read_text() for file in credentials.iterdir()}
        assert (running.directory.stat().st_mode & 0o077, credentials.stat().st_mode & 0o077) == (
            0,
            0,
        )
    findings.add("what up said", running.process.output())
    findings.add("what the provisioner said", apart.output())
    issued = [text for where, text in findings.seen if where == "an issued seed"]
    findings.seen = [(where, text) for where, text in findings.seen if where != "an issued seed"]

    assert len(issued) == 2
    for seed in (*seeds.values(), *issued):
        assert findings.of(seed) == []
    assert findings.of(password) == []
    assert findings.of(IN_DATABASE_URL) == []
    assert findings.of(IN_NATS_URL) == []
    # Scripts get their parameters through the environment, but no other secret of workspaced.
    assert of_agents.of(IN_PARAMETER) != []
    for secret in (password, IN_DATABASE_URL, IN_NATS_URL, *seeds.values(), *issued):
        assert of_agents.of(secret) == []
    # Only the request and the job contain a parameter; everything else contains stars.
    carriers = ("workspaced.in.tool.", "workspaced.job.")
    assert [w for w in findings.of(IN_PARAMETER) if not w.startswith(carriers)] == []
    assert any("***" in text for where, text in findings.seen if where.startswith("workspaced.log"))


async def lived(running: Up, tmp_path: Path, findings: Findings) -> None:
    """Run a workspace that starts, one that fails, and a frontend; record the issued seeds."""
    templates = {
        name: running.data(
            "template", "push", folder(tmp_path, TEMPLATE.format(name=name, status=status), name)
        )["template_id"]
        for name, status in (("well", 0), ("ill", 3))
    }
    options = role_options(running.directory / "credentials", "chat-service")
    async with (
        listening(running, findings) as operator,
        connected(ChatService(), running.nats, **options) as service,
    ):
        organization = "8fcadcc8-3807-5396-9df9-e5afb8474e7d"
        for name, unknown in (("well", {}), ("ill", {}), ("well", {"other": IN_PARAMETER})):
            chat = await service.chat()
            chat.organization_id = organization
            args = {
                "template_id": templates[name],
                "parameters": {"token": IN_PARAMETER, **unknown},
            }
            answer = await chat.answer(await chat.ask("create_workspace", args))
            findings.add("an answer", json.dumps(answer))
            findings.add(
                "read_events", json.dumps(await service.rpc("read_events", chat_id=chat.id))
            )
            assert ("created" in answer["result"]) == (name == "well" and not unknown), answer
        findings.add("events", running.run("events", "--all").stdout)
        findings.add("chats", running.run("chat", "list", "--json").stdout)
        junk = json.dumps({"token": "not for a dead letter"}).encode()
        await service.publish(f"workspaced.in.tool.{chat.id}.svc", junk)
        frontend = await service.rpc("frontend_credential", chat_ids=[chat.id], ttl_seconds=60)
        async with connected(Participant(), running.nats, **credential_options(frontend)) as party:
            await party.flush()
        await stored(operator, findings)
    findings.add("an issued seed", frontend["seed"])
    (credential,) = (tmp_path / "apart").rglob("credential.json")
    assert credential.stat().st_mode & 0o077 == 0
    findings.add("an issued seed", json.loads(credential.read_text())["seed"])
