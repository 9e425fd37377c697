"""Errors of the provisioner itself: the chat learns of them, and hopeless work is not retried."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workspaced.provisioning.journal import Journal

from bus import NoResponder, Refused, ServiceError, Unavailable, is_final
from handlers.provisioner.builder import Builder
from handlers.provisioner.journal import LocalWorkspace
from handlers.publishing import deliver, new_event
from handlers.publishing.build_log import BuildLog
from handlers.sandbox.shell import environment_faults
from statemachine.local_template import PARAMETER
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.rigs.messages import Event, new_id

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
NO_DESCRIPTORS = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


async def failed(rig: Rig, job: Event) -> tuple[str, str]:
    """Run a job whose build fails; return the error of its build_failed, and the build's log."""
    build = await rig.ask(job)
    ended = await rig.ended(build)
    assert ended["type"] == "workspaced.build_failed.v1"
    error = str(ended["data"]["error"])
    await rig.until(lambda: error in rig.output(build), "the error in the build's log")
    return error, rig.output(build)


@pytest.mark.parametrize(
    ("owner", "method", "error", "words"),
    [
        (Builder, "build", RuntimeError("a bug"), "a bug"),
        (Builder, "build", NO_DESCRIPTORS, "Too many open files"),
        (Builder, "build", Refused("permissions violation"), "permissions violation"),
        (Builder, "exists", PermissionError(13, "Permission denied"), "Permission denied"),
        (Journal, "save", NO_SPACE, "No space left"),
    ],
)
async def test_any_exception_fails_the_build_with_its_message(
    rig: Rig,
    provisioning: Provisioning,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    error: Exception,
    words: str,
) -> None:
    job, after = rig.job(version=rig.version({})), rig.job(2, version=rig.version({}))
    async with provisioning():
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, failing(error))
            said, _ = await failed(rig, job)
        succeeded = await rig.ended(await rig.ask(after))

    assert words in said
    assert succeeded["type"] == "workspaced.build_succeeded.v1", "the provisioner goes on"


async def test_a_success_that_cannot_be_saved_becomes_a_failure(
    rig: Rig, provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Journal.save

    def full_at_the_end(self: Journal[LocalWorkspace], record: LocalWorkspace) -> None:
        if record.newest is not None and record.newest.finished:
            raise NO_SPACE
        save(self, record)

    monkeypatch.setattr(Journal, "save", full_at_the_end)
    async with provisioning():
        said, _ = await failed(rig, rig.job(version=rig.version({}), agent=[{"name": "main"}]))

    assert "No space left" in said
    assert not rig.facts(type="build_succeeded")


async def test_an_unreadable_job_fails_and_its_log_says_why(
    rig: Rig, provisioning: Provisioning
) -> None:
    job = rig.job(version=rig.version({}), agent=[{"name": "main", "env": {"A": ["x"]}}])
    async with provisioning():
        said, _ = await failed(rig, job)

    assert "data.template.spec.agent" in said


BROKEN: list[dict[str, Any]] = [
    {"template": "python"},
    {"template": None},
    {"workspace_name": None},
    {"owner_name": 7},
    {"parameters": {"port": 80}},
    {"parameters": ["a"]},
    {"not_after": "soon"},
    {"template": {"spec": {"build": {"{transition}": 7}}}},
    {"template": {"spec": {"build": None, "agent": [{"name": "a"}] * 65}}},
    {"template": {"spec": {"agent": [{"name": "a", "env": {"A=B": ["x"]}}]}}},
    {"template": {"archive": {"sha256": "x", "size": 2**40}}},
]


@pytest.mark.parametrize("transition", ["stop", "delete"])
@pytest.mark.parametrize("broken", BROKEN, ids=str)
async def test_a_workspace_with_an_invalid_template_can_be_stopped_and_deleted(
    rig: Rig, provisioning: Provisioning, tmp_path: Path, transition: str, broken: dict[str, Any]
) -> None:
    version = rig.version({})
    step = {transition: f"touch {tmp_path}/ran"}
    job = rig.job(2, transition, version=version, build=step)
    if isinstance(template := broken.get("template"), dict):
        spec = job["template"]["spec"] | template.get("spec", {})
        if spec["build"] == {"{transition}": 7}:
            spec["build"] = {transition: 7}
        job["template"] = {**job["template"], **template, "spec": spec}
    else:
        job |= broken
    runs = job["template"] and job["template"] != "python" and job["template"]["spec"]["build"]
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(version=version)))
        ended = await rig.ended(await rig.ask(job))
        workspace = tmp_path / "root" / "workspaces" / rig.workspace

    assert ended["type"] == "workspaced.build_succeeded.v1"
    assert (tmp_path / "ran").exists() == (runs == step)
    assert workspace.exists() == (transition == "stop")


async def test_a_stop_step_runs_without_its_template_archive(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    version = rig.version({"other": "files"})
    version["archive"]["sha256"] = "0" * 64
    stop = rig.job(2, "stop", version=version, build={"stop": f"touch {tmp_path}/ran"})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(version=rig.version({}))))
        ended = await rig.ended(build := await rig.ask(stop))

    assert ended["type"] == "workspaced.build_succeeded.v1"
    assert (tmp_path / "ran").exists()
    assert "without the files of this version" in rig.output(build)


LONG = "x" * 140_000


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"parameters": {"notes": LONG}}, "parameter 'notes'"),
        ({"parameters": {"notes": "a\0b"}}, "parameter 'notes'"),
        ({"parameters": {f"p{n}": LONG[:130_000] for n in range(20)}}, "all variables together"),
        ({"agent": [{"name": "main", "env": {"A=B": "1"}}]}, "'A=B'"),
        ({"agent": [{"name": "main", "env": {"": "1"}}]}, "agent 'main'"),
        ({"agent": [{"name": "main", "env": {"NOTES": LONG}}]}, "'NOTES'"),
        ({"agent": [{"name": "main", "env": {"A\0": "1"}}]}, "NUL"),
    ],
    ids=["long", "nul", "together", "equals", "empty", "agent-long", "agent-nul"],
)
async def test_a_value_that_cannot_be_an_environment_variable_fails_with_an_explanation(
    rig: Rig, provisioning: Provisioning, tmp_path: Path, job: dict[str, Any], words: str
) -> None:
    build = {"start": f"touch {tmp_path}/built", "stop": f"touch {tmp_path}/stopped"}
    version = rig.version({})
    async with provisioning():
        said, _ = await failed(rig, rig.job(version=version, build=build, **job))
        (tmp_path / "root" / "workspaces" / rig.workspace).mkdir(parents=True)
        stop = await rig.ended(
            await rig.ask(rig.job(2, "stop", version=version, build=build, **job))
        )

    assert words in said
    assert not (tmp_path / "built").exists()
    assert stop["type"] == "workspaced.build_succeeded.v1"
    assert (tmp_path / "stopped").exists(), "a stop runs without that value"


def test_values_that_the_kernel_accepts_are_accepted() -> None:
    name = f"{PARAMETER}A"
    most = 32 * 4096 - len(f"{name}=\0")

    assert not dict(environment_faults({name: "x" * most, "LANG": "C", "X": "ä" * 1000}))
    assert dict(environment_faults({name: "x" * (most + 1)}))


async def test_an_agent_that_cannot_start_is_started_later(
    rig: Rig, provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spawn, tries = os.posix_spawn, list[int]()

    def spawn_later(*words: Any, **more: Any) -> int:
        tries.append(1)
        if len(tries) < 3:
            raise NO_DESCRIPTORS
        return spawn(*words, **more)

    monkeypatch.setattr(os, "posix_spawn", spawn_later)
    os.mkfifo(gate := tmp_path / "gate")
    agent = ("/bin/sh", "-c", f"echo there > {gate}")
    job = rig.job(version=rig.version({}), agent=[{"name": "main"}])
    async with provisioning(agent_command=agent):
        await rig.ended(await rig.ask(job))
        assert await asyncio.to_thread(gate.read_text) == "there\n"
    assert len(tries) == 3


def test_final_refusals_are_distinguished_from_temporary_ones() -> None:
    no = [Refused(""), *(ServiceError(code, "") for code in (400, 401, 403, 404, 409, 413))]
    not_now = [
        *(Unavailable(""), NoResponder("")),
        *(ServiceError(code, "") for code in (408, 429, 500, 502, 503, 504)),
    ]

    assert [is_final(error) for error in no] == [True] * len(no)
    assert [is_final(error) for error in not_now] == [False] * len(not_now)


async def test_a_refused_fact_is_not_retried_for_ever() -> None:
    class Refusing:
        publish = staticmethod(failing(Refused("permissions violation")))

    fact = new_event("provisioner", "here", new_id(), "build_started", {})
    with pytest.raises(Refused):
        await deliver(Refusing(), fact)  # type: ignore[arg-type]


async def test_refused_log_lines_are_dropped_and_later_ones_are_sent(tmp_path: Path) -> None:
    sent, tries = list[bytes](), list[int]()

    async def send(_subject: str, data: bytes) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise Refused("maximum payload exceeded")
        if len(tries) == 2:
            raise Unavailable("not connected")
        sent.append(data)

    log = BuildLog(new_id(), new_id(), "agent", "/agent/a", send, ledger=tmp_path / "ledger")
    running = asyncio.create_task(log.run())
    log.write("startup", "info", "first\n")
    await log.drained(10)
    log.write("startup", "info", "second\n")
    await log.drained(10)
    running.cancel()

    assert len(tries) == 3
    assert b"second" in b"".join(sent)
