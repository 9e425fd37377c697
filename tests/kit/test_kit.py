"""What the kit does for a build function, on a running `workspaced up`."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import pytest

from tests.rigs.client import (
    Chat,
    ChatService,
    Participant,
    Received,
    cancel_and_wait,
    connected,
    role_options,
)
from tests.rigs.processes import ROOT, Up, up
from tests.rigs.proxy import proxy

ORGANIZATION = str(uuid5(NAMESPACE_URL, "workspaced:organization:default"))
SECRET = "sesame open"
TEMPLATE = f"""
name = "kit"
pool = "kit"

[[parameter]]
name = "token"
type = "string"
default = "{SECRET}"
sensitive = true

[build]
start = "true"
"""


@pytest.fixture(scope="module")
def workspaced() -> Iterator[Any]:
    """Import the client, which is a distribution of its own."""
    sys.path.insert(0, str(ROOT / "client"))
    try:
        yield importlib.import_module("workspaced")
    finally:
        sys.path.remove(str(ROOT / "client"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("kit") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def pushed(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("template")
    (folder / "template.toml").write_text(TEMPLATE)
    (folder / "hello.txt").write_text("hello")
    return running.data("template", "push", folder)


class Rig:
    """A chat, the facts that provisioners publish, and how to serve the pool with a function."""

    def __init__(self, running: Up, chat: Chat, template_id: str, facts: Received[Any]) -> None:
        self.running, self.chat, self.template_id, self.facts = running, chat, template_id, facts

    async def ask(self) -> str:
        return await self.chat.ask("create_workspace", {"template_id": self.template_id})

    async def fact(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait for a fact about the chat; return the whole event."""

        def fits(message: Any) -> bool:
            event = json.loads(message.data)
            return (
                event["subject"] == self.chat.id
                and event["type"] == f"workspaced.{name}.v1"
                and all(event["data"].get(key) == value for key, value in wanted.items())
            )

        return dict(json.loads((await self.facts.first(fits)).data))

    def count(self, event: dict[str, Any]) -> int:
        return sum(json.loads(one.data)["id"] == event["id"] for one in self.facts.all)


@pytest.fixture
async def rig(running: Up, pushed: Any) -> AsyncIterator[Rig]:
    credentials = running.directory / "credentials"
    async with (
        connected(ChatService(), running.nats, **role_options(credentials, "chat-service")) as one,
        connected(Participant(), running.nats, **role_options(credentials, "operator")) as two,
    ):
        chat = await one.chat()
        chat.organization_id = ORGANIZATION
        facts = await two.hear("workspaced.in.provisioner.*.*")
        yield Rig(running, chat, pushed["template_id"], facts)


@asynccontextmanager
async def serving(
    kit: Any, rig: Rig, build: Any, directory: Path, url: str = "", clean_up: Any = None
) -> Any:
    """Serve the pool with a build function for the chat's jobs, until the end of the block."""

    async def own(job: Any) -> Any:
        # A job of an earlier test comes again if its provisioner ended before it acked the job.
        return await build(job) if job.chat_id == rig.chat.id else None

    key = rig.running.seed_file("provisioner")
    made = kit.provisioner(pool="kit", name="kit-1", key=key, directory=directory)(own)
    if clean_up is not None:
        made.clean_up(clean_up)
    task = asyncio.create_task(made.run(url or rig.running.nats))
    try:
        yield made
        if task.done():
            task.result()
    finally:
        await cancel_and_wait(task)


async def test_the_text_of_an_exception_fails_the_build_without_secrets(
    workspaced: Any, rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def build(job: Any) -> None:
        job.log(f"the token is {job.parameters['token']}")
        raise ValueError(f"{job.parameters['token']} opens nothing")

    async with serving(workspaced, rig, build, tmp_path):
        call = await rig.ask()
        answer = await rig.chat.answer(call)

    assert answer["result"]["error"] == "workspace build failed: ValueError: *** opens nothing"
    assert "ValueError: *** opens nothing" in caplog.text
    assert "sesame open opens" not in caplog.text
    lines = [line["data"]["output"] for line in rig.chat.logs.all]
    assert lines[0].startswith("the token is ***\n")
    assert SECRET not in "".join(lines)


async def test_an_exceeded_quota_is_answered_as_such(
    workspaced: Any, rig: Rig, tmp_path: Path
) -> None:
    async def build(job: Any) -> None:
        raise workspaced.QuotaExceeded("too much", credits_consumed=7, budget=5)

    async with serving(workspaced, rig, build, tmp_path):
        result = (await rig.chat.answer(await rig.ask()))["result"]

    assert result["error_code"] == "INSUFFICIENT_QUOTA"
    assert result["quota"] == {"credits_consumed": 7, "budget": 5}


async def test_an_agent_gets_its_key_and_what_happens_without_a_job_is_reported(
    workspaced: Any, rig: Rig, tmp_path: Path
) -> None:
    agent_id = str(uuid4())
    keys = []

    async def build(job: Any) -> Any:
        await job.unpack(tmp_path / "workspace")
        keys.append(await job.agent_credential(agent_id))
        return workspaced.Built(agents=[workspaced.BuiltAgent("main", id=agent_id)])

    async with serving(workspaced, rig, build, tmp_path / "state") as made:
        await rig.ask()
        job = (await rig.fact("build_succeeded"))["data"]
        await rig.chat.state("agent_connecting")
        await made.agent_exited(job["workspace_id"], agent_id, exit_code=3, output="no disk")
        exited = (await rig.fact("agent_exited"))["data"]
        await made.workspace_stopped(job["workspace_id"])
        await rig.chat.state("stopped")
        await made.workspace_deleted(job["workspace_id"])
        await rig.chat.state("none")

    assert (tmp_path / "workspace/hello.txt").read_text() == "hello"
    assert keys[0].seed.startswith("SU")
    assert keys[0].inbox_prefix == f"_INBOX_{agent_id}"
    assert (exited["agent_id"], exited["exit_code"], exited["output"]) == (agent_id, 3, "no disk")
    assert "transition" not in exited


async def test_an_agent_that_is_gone_before_its_build_has_ended_is_reported_after_it(
    workspaced: Any, rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent_id, unknown = str(uuid4()), str(uuid4())

    async def build(job: Any) -> Any:
        for agent in (agent_id, unknown):
            await made.agent_exited(job.workspace_id, agent, exit_code=3)
        return workspaced.Built([workspaced.BuiltAgent("main", id=agent_id)])

    async with serving(workspaced, rig, build, tmp_path) as made:
        await rig.ask()
        exited = (await rig.fact("agent_exited"))["data"]

    events = [json.loads(one.data) for one in rig.facts.all]
    # A fact may be published again, with the same id.
    names = {one["id"]: one["type"] for one in events if one["subject"] == rig.chat.id}
    order = [
        f"workspaced.{name}.v1" for name in ("build_started", "build_succeeded", "agent_exited")
    ]
    assert list(names.values()) == order
    assert (exited["agent_id"], exited["exit_code"]) == (agent_id, 3)
    assert f"the end of agent {unknown} is not reported" in caplog.text


async def test_facts_of_an_open_build_are_published_again_after_a_reconnect(
    workspaced: Any, rig: Rig, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def build(job: Any) -> None:
        await go_on.wait()

    host, port = rig.running.nats.removeprefix("nats://").split(":")
    async with proxy(lambda: asyncio.open_connection(host, int(port))) as between:
        url = f"nats://127.0.0.1:{between.port}"
        async with serving(workspaced, rig, build, tmp_path, url):
            call = await rig.ask()
            started = await rig.fact("build_started")
            between.drop()
            await rig.facts.first(lambda _: rig.count(started) > 1)
            go_on.set()
            await rig.chat.answer(call)

    assert (await rig.fact("build_succeeded"))["data"]["agents"] == []


async def test_what_a_canceled_build_left_is_removed_before_it_is_reported(
    workspaced: Any, rig: Rig, tmp_path: Path
) -> None:
    said: list[str] = []

    async def build(job: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            said.append(f"ended, cancel requested: {job.cancel_requested}")

    async def remove(job: Any) -> None:
        said.append("removed")

    async with serving(workspaced, rig, build, tmp_path, clean_up=remove):
        await rig.ask()
        await rig.fact("build_started")
        answer = await rig.chat.participant.rpc("cancel_build", chat_id=rig.chat.id)
        await rig.fact("build_canceled")

    assert answer["canceled"] is True
    assert said == ["ended, cancel requested: True", "removed"]


async def test_a_key_of_another_role_ends_the_provisioner_with_the_reason(
    workspaced: Any, running: Up, tmp_path: Path
) -> None:
    made = workspaced.provisioner(
        pool="kit", name="kit-1", key=running.seed_file("chat-service"), directory=tmp_path
    )(lambda job: None)

    with pytest.raises(workspaced.CannotServe, match="provisioner"):
        await made.run(running.nats)


def packed(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def entry(name: str, **more: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in {"size": 1, **more}.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    "bad",
    [
        entry("../out"),
        entry("/out"),
        entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0),
        entry("hard", type=tarfile.LNKTYPE, linkname="out", size=0),
        entry("pipe", type=tarfile.FIFOTYPE, size=0),
    ],
    ids=lambda one: one.name,
)
def test_an_archive_that_leads_out_is_refused(
    workspaced: Any, tmp_path: Path, bad: tarfile.TarInfo
) -> None:
    templates = importlib.import_module("workspaced.provisioning.templates")
    archive = packed(tmp_path / "a.tar.gz", entry("fine"), bad)

    with pytest.raises(workspaced.BadTemplate):
        templates.unpack(archive, tmp_path / "workspace")

    assert not list((tmp_path / "workspace").iterdir())


def test_unpacking_replaces_links_and_follows_none(workspaced: Any, tmp_path: Path) -> None:
    templates = importlib.import_module("workspaced.provisioning.templates")
    outside, workspace = tmp_path / "outside", tmp_path / "workspace"
    outside.mkdir()
    workspace.mkdir()
    (workspace / "folder").symlink_to(outside)
    (workspace / "file").symlink_to(outside / "file")
    archive = packed(tmp_path / "a.tar.gz", entry("folder/inner"), entry("file"))

    templates.unpack(archive, workspace)

    assert not list(outside.iterdir())
    assert (workspace / "folder/inner").read_text() == "x"
    assert not (workspace / "file").is_symlink()


@pytest.mark.parametrize(
    "shown",
    [SECRET, "sesame%20open", "sesame+open", json.dumps(SECRET), repr(SECRET)],
)
def test_spellings_of_a_secret_are_masked(workspaced: Any, shown: str) -> None:
    masking = importlib.import_module("workspaced.provisioning.masking")

    assert "sesame" not in masking.Mask([SECRET])(f"before {shown} after")
    assert masking.Mask(["abc"])("abc") == "abc"
