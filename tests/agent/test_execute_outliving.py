"""Processes outlive the agent that started them; stops and limits end them as a whole; values are masked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from bus import ServiceError
from handlers.access.identities import credentials_directory
from handlers.agent import call_notes
from handlers.agent.call_notes import CallNotes
from handlers.embedded import Servers
from handlers.sandbox.processes import find_marked
from statemachine.exec_tools import EXEC_TOOLS, ONLY_LOOK
from tests.agent.exec_rig import ExecRig
from tests.rigs.messages import new_id
from tests.rigs.servers import Nats

SECRET = "correct horse battery"


@pytest.fixture
async def rig(servers: Servers, tmp_path: Path) -> AsyncIterator[ExecRig]:
    async with ExecRig.on(servers, tmp_path) as rig:
        yield rig


def keepers(rig: ExecRig) -> list[int]:
    """Return the processes that keep commands: those without a child among them that forks keepers."""
    marked = find_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace_id}")
    program = [pid for pid in marked if "process_keeper" in " ".join(psutil.Process(pid).cmdline())]
    return [pid for pid in program if psutil.Process(pid).ppid() in program or len(program) == 1]


async def test_a_command_goes_on_while_the_agent_is_killed_twice(rig: ExecRig) -> None:
    rig.configure()
    await rig.spawn()
    lines = 15
    command = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.1; done; exit 9"
    expected = "".join(f"line {n}\n" for n in range(1, lines + 1))
    call = new_id()
    exec_id = (await rig.done("execute", call, command=command, wait_seconds=0))["exec_id"]

    def shows(line: str) -> bool:
        return any(line in piece["output"] for piece in rig.published("exec_output", exec_id))

    for number in (3, 8):
        await rig.until(lambda line=f"line {number}\n": shows(line))  # type: ignore[misc]
        rig.kill()
        await rig.spawn()
        again = await rig.done("execute", call, command=command, wait_seconds=0)
        assert again["exec_id"] == exec_id
    assert await rig.whole(exec_id) == expected
    assert (await rig.done("process_output", exec_id=exec_id))["exit_code"] == 9
    await rig.exited(exec_id)
    shown, at = "", 0
    for piece in rig.published("exec_output", exec_id):
        assert piece["offset"] <= at, "nothing is missing"
        shown += piece["output"][at - piece["offset"] :]
        at = max(at, piece["next"])
    assert shown == expected


async def test_what_a_crash_of_nats_took_is_published_again(tmp_path: Path) -> None:
    nats = Nats(tmp_path / "nats")
    await nats.start()
    servers = Servers(nats.directory, credentials_directory(nats.directory), nats.url, None, "")
    try:
        async with ExecRig.on(servers, tmp_path / "workspace") as rig, rig.living():
            over = (await rig.done("execute", command="echo over; exit 3"))["exec_id"]
            begun = await rig.done(
                "execute", command="echo begun; cat", open_stdin=True, wait_seconds=0
            )
            open_one = begun["exec_id"]
            await rig.exited(over)
            await rig.until(lambda: bool(rig.published("exec_output", open_one)))
            rig.events.clear()
            back = asyncio.Event()
            rig.bus.on_reconnect(back.set)
            await nats.stop(signal.SIGKILL)
            nats.wipe()
            await nats.start()
            await back.wait()
            await rig.create_streams()

            assert (await rig.exited(over))["exit_code"] == 3
            for exec_id, text in ((over, "over\n"), (open_one, "begun\n")):
                # What was not yet acknowledged when NATS ended comes first, and may come twice.
                await rig.until(partial(rig.published, "exec_started", exec_id))
                await rig.until(partial(rig.published, "exec_output", exec_id))
                pieces = rig.published("exec_output", exec_id)
                assert {(piece["offset"], piece["output"]) for piece in pieces} == {(0, text)}
            await rig.answers()
            await rig.done("process_input", exec_id=open_one, close=True)
            assert (await rig.exited(open_one))["exit_code"] == 0
    finally:
        await nats.stop()


async def test_a_stop_ends_a_tree_that_ignores_sigterm_and_a_start_remembers(
    rig: ExecRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = new_id()
    tree = "trap '' TERM; (setsid sh -c \"trap '' TERM; echo deep; sleep 60\") & echo top; sleep 60 & wait"
    async with rig.living():
        begun = await rig.done("execute", call, command=tree, wait_seconds=0)
        while "deep" not in (await rig.done("process_output", exec_id=begun["exec_id"]))["output"]:
            pass
        ended = await rig.done("execute", ended_call := new_id(), command="echo done")
        began = asyncio.get_running_loop().time()
    took = asyncio.get_running_loop().time() - began
    assert find_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace_id}") == []
    assert took < 15
    exited = await rig.exited(begun["exec_id"])
    assert (exited["reason"], exited["signal"]) == ("stopped", "KILL")

    old, rig.agent = (
        rig.home,
        new_id(),
    )  # a start build gives its agents new ids, and removes the old folders
    old.rename(rig.workspace / "old")
    async with rig.living():
        again = await rig.done("execute", call, command=tree)
        assert (again["status"], again["reason"]) == ("exited", "stopped")
        assert "deep" in again["output"]
        assert await rig.done("execute", ended_call, command="echo done") == ended
        listed = (await rig.done("process_list"))["processes"]
        assert {entry["exec_id"] for entry in listed} == {begun["exec_id"], ended["exec_id"]}


async def test_a_process_without_its_keeper_is_lost(rig: ExecRig) -> None:
    rig.configure()
    await rig.spawn()
    call = new_id()
    await rig.done("execute", call, command="echo here; sleep 60", wait_seconds=0)
    to = {"exec_id": rig.exec_id(call)}
    while not (await rig.done("process_output", **to, wait_seconds=5))["output"]:
        pass
    for pid in keepers(rig):
        os.kill(pid, signal.SIGKILL)
    lost = await rig.done("execute", call, command="echo here; sleep 60")
    assert (lost["status"], lost["reason"], lost["output"]) == ("exited", "lost", "here\n")
    assert (await rig.exited(to["exec_id"]))["reason"] == "lost"
    # The program that forks keepers was killed as well, and another one is started.
    assert (await rig.done("execute", command="echo next"))["output"] == "next\n"


async def test_a_call_that_the_agent_did_not_finish_is_not_done_again(rig: ExecRig) -> None:
    rig.configure()
    await rig.spawn()
    await rig.done("list_files")
    notes = rig.workspace / ".workspaced" / "exec" / "calls.sqlite"
    rig.kill()
    with sqlite3.connect(notes) as opened:
        rows = opened.execute("select call_id, tool, digest from calls").fetchall()
    assert rows == [], "calls that only look are not noted"
    await rig.spawn()
    write, run = new_id(), new_id()
    await rig.done("write_file", write, path="file", content="1")
    await rig.done("execute", run, command="echo >> runs")
    rig.kill()
    with sqlite3.connect(notes) as opened:
        opened.execute("update calls set answer = null")
    (rig.workspace / ".workspaced" / "exec" / "processes" / rig.exec_id(run) / "note").unlink()
    (rig.workspace / "file").unlink()
    await rig.spawn()
    assert "nobody knows" in await rig.refused("write_file", write, path="file", content="1")
    lost = await rig.done("execute", run, command="echo >> runs")
    assert (lost["status"], lost["reason"]) == ("exited", "lost")
    assert not (rig.workspace / "file").exists()
    assert (rig.workspace / "runs").read_text() == "\n"


def test_a_note_is_on_the_disk_before_a_call_that_could_be_repeated(tmp_path: Path) -> None:
    notes, off_disk = CallNotes(tmp_path / "calls.sqlite"), []
    for tool in EXEC_TOOLS.keys() - ONLY_LOOK:
        assert notes.claim(new_id(), tool, {}) is None
        (synchronous,) = notes._notes.execute("pragma synchronous").fetchone()
        if synchronous < 2:  # FULL: a transaction waits for the disk
            off_disk.append(tool)
    notes.close()
    # Without power, the process that these would reach again is gone.
    assert sorted(off_disk) == ["process_input", "process_signal"]


def test_the_call_of_a_process_that_is_remembered_is_not_forgotten(tmp_path: Path) -> None:
    notes = CallNotes(tmp_path / "calls.sqlite", lambda: ["long"])
    try:
        for call in ("long", "short", *(f"other-{number}" for number in range(1_100))):
            assert notes.claim(call, "execute", {"command": call}) is None
            notes.settle(call, {"is_error": False, "result": {}})
        with pytest.raises(ServiceError) as refusal:
            notes.claim("long", "execute", {"command": "another"})
        assert refusal.value.code == 409
        assert notes.claim("long", "execute", {"command": "long"}) is not None
        assert notes.claim("short", "execute", {"command": "another"}) is None
    finally:
        notes.close()


async def test_a_process_keeps_its_call_from_being_forgotten(
    rig: ExecRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_notes, "_FORGET_EVERY", 1)
    monkeypatch.setattr(call_notes, "MOST_ENDED", 1)
    call = new_id()
    async with rig.living():
        given = {"command": "cat", "open_stdin": True, "wait_seconds": 0}
        await rig.done("execute", call, **given)
        for _ in range(2):
            await rig.done("execute", command="true")
        with pytest.raises(ServiceError) as refusal:
            await rig.done("execute", call, command="echo another")
        assert refusal.value.code == 409
        again = await rig.done("execute", call, **given)
        assert again["status"] == "running"


async def test_a_command_that_comes_during_a_stop_is_run_after_the_next_start(rig: ExecRig) -> None:
    os.mkfifo(rig.workspace / "fifo")
    call = new_id()
    async with rig.living() as agent:
        slow = "trap 'cat fifo; exit' TERM; echo up; sleep 60 & wait"
        begun = await rig.done("execute", command=slow, wait_seconds=0)
        assert (await rig.done("process_output", exec_id=begun["exec_id"], wait_seconds=20))[
            "output"
        ]
        agent.stop()
        while "is being stopped" not in await rig.refused("execute", call, command="echo ran"):
            pass
        await asyncio.to_thread((rig.workspace / "fifo").write_text, "")
    async with rig.living():
        assert (await rig.done("execute", call, command="echo ran"))["output"] == "ran\n"


async def test_values_are_masked_also_across_pieces(rig: ExecRig) -> None:
    command = f"printf 'correct hor'; sleep 0.1; printf 'se battery'; echo ' {SECRET}'; printf cor"
    async with rig.living(secrets=(SECRET,)):
        result = await rig.done("execute", command=command)
        failed = await rig.refused("execute", command="true", cwd=SECRET)
        listed = (await rig.done("process_list"))["processes"]
        await rig.exited(result["exec_id"])
        # A short beginning is shown after a second; what follows it is masked nevertheless.
        typed = await rig.done(
            "execute",
            command="printf cor; read x; echo rect horse battery",
            open_stdin=True,
            wait_seconds=0,
        )
        to = {"exec_id": typed["exec_id"]}
        held = await rig.done("process_output", **to, wait_seconds=5)
        await rig.done("process_input", **to, data="\n")
        rest = await rig.done("process_output", **to, after=3, wait_seconds=5)
    assert result["output"] == "*** ***\ncor"
    assert SECRET not in failed
    assert SECRET not in listed[0]["command"]
    assert (held["output"], rest["output"]) == ("cor", "***\n")
    assert SECRET not in str(rig.events)
    kept = [path for path in (rig.workspace / ".workspaced" / "exec").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


async def test_memory_does_not_grow_with_the_output(rig: ExecRig) -> None:
    rig.configure()
    await rig.spawn()
    await rig.done("execute", command="head -c 1000000 /dev/zero | tr '\\0' x")
    assert rig.process is not None
    agent = psutil.Process(rig.process.pid)
    before = agent.memory_info().rss
    command = "head -c 100000000 /dev/zero | tr '\\0' x; read x"
    begun = await rig.done("execute", command=command, open_stdin=True, wait_seconds=0)
    to = {"exec_id": begun["exec_id"]}
    while (page := await rig.done("process_output", **to, after=99_999_000, wait_seconds=20))[
        "next"
    ] < 100_000_000:
        assert page["status"] == "running"
    (keeper,) = (psutil.Process(pid) for pid in keepers(rig))
    assert keeper.memory_info().rss < 40_000_000
    assert agent.memory_info().rss - before < 20_000_000
    assert page["dropped"] == 100_000_000 - 10 * 1024 * 1024
    await rig.done("process_input", **to, close=True)


async def test_a_command_counts_as_activity_in_the_workspace(rig: ExecRig) -> None:
    async with (
        rig.bus.subscribe(f"workspaced.in.agent.{rig.chat}.{rig.agent}") as facts,
        rig.living(activity_seconds=1),
    ):
        begun = await rig.done("execute", command="cat", open_stdin=True, wait_seconds=0)
        said = 0
        while said < 3:  # for the requests, and again while the command runs
            said += json.loads((await facts.next(10)).data)["type"].endswith(".agent_activity.v1")
        await rig.done("process_input", exec_id=begun["exec_id"], close=True)
