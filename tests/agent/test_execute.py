"""Commands that an agent runs: output, input, signals, ends, limits, and each call once."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from bus import NoResponder, ServiceError
from handlers.embedded import Servers
from tests.agent.exec_rig import ExecRig
from tests.rigs.messages import new_id

MIB = 1024 * 1024


@pytest.fixture
async def rig(servers: Servers, tmp_path: Path) -> AsyncIterator[ExecRig]:
    async with ExecRig.on(servers, tmp_path) as rig:
        yield rig


async def test_a_command_is_run_answered_and_published(rig: ExecRig) -> None:
    (rig.workspace / "sub").mkdir()
    async with rig.living(
        work_directory="sub", env={"OF_TEMPLATE": "t", "LD_LIBRARY_PATH": "/", "PYTHONHOME": "/"}
    ):
        call = new_id()
        command = 'echo "$PWD $OF_TEMPLATE $MINE"; echo err >&2; exit 3'
        result = await rig.done("execute", call, command=command, env={"MINE": "m"})
        exited = await rig.exited(rig.exec_id(call))

    output = f"{rig.workspace}/sub t m\nerr\n"
    assert result == {
        "exec_id": rig.exec_id(call),
        "status": "exited",
        "exit_code": 3,
        "output": output,
        "offset": 0,
        "next": len(output),
    }
    assert exited == {"exec_id": result["exec_id"], "exit_code": 3, "size": len(output)}
    (started,) = rig.published("exec_started", result["exec_id"])
    assert started == {
        "exec_id": result["exec_id"],
        "call_id": call,
        "command": command,
        "cwd": f"{rig.workspace}/sub",
    }
    pieces = rig.published("exec_output", result["exec_id"])
    assert "".join(piece["output"] for piece in pieces) == output
    types = [e["type"] for e in rig.events]
    assert types[0] == "workspaced.exec_started.v1"
    assert types[-1] == "workspaced.exec_exited.v1"
    assert {(e["source"], e["subject"]) for e in rig.events} == {(f"/agent/{rig.agent}", rig.chat)}


async def test_a_command_inherits_its_standard_streams_alone(rig: ExecRig) -> None:
    async with rig.living():
        result = await rig.done("execute", command="ls /proc/self/fd")
    assert result["output"].split() == ["0", "1", "2", "3"], "3 is the directory that `ls` reads"


async def test_a_command_cannot_be_run_where_or_with_what_does_not_exist(rig: ExecRig) -> None:
    async with rig.living():
        assert "nowhere" in await rig.refused("execute", command="true", cwd="nowhere")
        (rig.workspace / "file").touch()
        assert "not a directory" in await rig.refused("execute", command="true", cwd="file")
        assert "workspaced" in await rig.refused("execute", command="true", cwd=".workspaced")
        assert "NUL" in await rig.refused("execute", command="true \0")
        assert "'A=B'" in await rig.refused("execute", command="true", env={"A=B": ""})
        assert "command" in await rig.refused("execute")
        assert "base64" in await rig.refused("execute", command="cat", stdin="?", encoding="base64")
        assert "no process" in await rig.refused("process_output", exec_id=new_id())
        assert (await rig.done("process_list")) == {"processes": []}


async def test_how_a_process_ends_is_told(rig: ExecRig) -> None:
    async with rig.living():
        killed = await rig.done("execute", command="kill -9 $$")
        late = await rig.done("execute", command="sleep 60", timeout_seconds=0.1)
        group = "(trap '' TERM; sleep 60) & trap 'exit 7' TERM; sleep 60 & wait"
        begun = await rig.done("execute", command=group, wait_seconds=0)
        signal = {"exec_id": begun["exec_id"], "signal": "TERM"}
        assert await rig.done("process_signal", **signal) == {"signaled": True}
        end = await rig.done("process_output", exec_id=begun["exec_id"], wait_seconds=20)
        assert (end["status"], end["exit_code"]) == ("exited", 7)
        # What it left running is still reached.
        signal["signal"] = "KILL"
        assert await rig.done("process_signal", **signal) == {"signaled": True}
        await rig.exited(late["exec_id"])
        listed = (await rig.done("process_list"))["processes"]

    assert (killed["status"], killed["signal"], "exit_code" in killed) == ("exited", "KILL", False)
    assert (late["signal"], late["reason"]) == ("TERM", "timeout")
    exited = rig.published("exec_exited", late["exec_id"])[-1]
    assert exited == {"exec_id": late["exec_id"], "signal": "TERM", "reason": "timeout", "size": 0}
    assert [entry["command"] for entry in listed] == ["kill -9 $$", "sleep 60", group]
    assert listed[1]["reason"] == "timeout"
    assert all(e["started_at"].endswith("Z") and e["ended_at"].endswith("Z") for e in listed)


async def test_input_goes_to_the_command_until_it_is_closed(rig: ExecRig) -> None:
    async with rig.living():
        given = await rig.done("execute", command="cat", stdin="all of it")
        binary = base64.b64encode(bytes(range(256))).decode()
        raw = await rig.done(
            "execute", command="od -An -tu1 | tail -1", stdin=binary, encoding="base64"
        )
        cat = await rig.done("execute", command="cat", stdin="a", open_stdin=True, wait_seconds=0)
        to = {"exec_id": cat["exec_id"]}
        assert await rig.done("process_input", **to, data="bc") == {"written": 2}
        while (page := await rig.done("process_output", **to, wait_seconds=5))["next"] < 3:
            pass
        assert await rig.done("process_input", **to, data="d", close=True) == {"written": 1}
        assert "closed" in await rig.refused("process_input", **to, data="e")
        assert await rig.whole(cat["exec_id"]) == "abcd"
        none = await rig.done("execute", command="cat; sleep 60", wait_seconds=0)
        assert "closed" in await rig.refused("process_input", exec_id=none["exec_id"], data="x")
        assert "no terminal" in await rig.refused("process_input", exec_id=none["exec_id"], cols=9)

    assert given["output"] == "all of it"
    assert raw["output"].split()[-1] == "255"
    assert page["output"] == "abc"


async def test_more_input_than_a_command_reads_is_not_taken(rig: ExecRig) -> None:
    async with rig.living():
        slow = await rig.done("execute", command="sleep 60", open_stdin=True, wait_seconds=0)
        to = {"exec_id": slow["exec_id"]}
        # One fills the pipe, the other what the keeper holds.
        taken = [
            (await rig.done("process_input", **to, data="x" * 100_000))["written"] for _ in range(2)
        ]
        waits = asyncio.create_task(rig.refused("process_input", **to, data="more"))
        await rig.done("process_signal", **to, signal="KILL")
        assert "closed" in await waits
    assert all(0 < written < 100_000 for written in taken)


async def test_a_terminal(rig: ExecRig) -> None:
    async with rig.living():
        shell = await rig.done(
            "execute",
            command="stty -echo; stty size; read x; stty size; cat",
            pty={"cols": 99, "rows": 9},
            wait_seconds=0,
        )
        to = {"exec_id": shell["exec_id"]}

        async def shown(words: str) -> str:
            after, text = 0, ""
            while words not in text:
                page = await rig.done("process_output", **to, after=after, wait_seconds=10)
                after, text = page["next"], text + page["output"]
            return text

        await shown("9 99\r\n")
        assert await rig.done("process_input", **to, cols=120, rows=40) == {"written": 0}
        await rig.done("process_input", **to, data="\n")
        await shown("40 120\r\n")
        await rig.done("process_input", **to, data="no line end", close=True)
        exited = await rig.exited(shell["exec_id"])
        assert "no line end" in await rig.whole(shell["exec_id"])

    assert exited["exit_code"] == 0


async def test_output_is_text_in_whole_characters(rig: ExecRig) -> None:
    async with rig.living():
        command = r"printf '\000\033[1m'; printf '\303'; sleep 0.1; printf '\244\377€'"
        text = "\0\033[1mä\ufffd€"
        result = await rig.done("execute", command=command)
        assert result["output"] == text
        at = text.encode().index("ä".encode())
        inside = await rig.done("process_output", exec_id=result["exec_id"], after=at + 1)
        one = await rig.done("process_output", exec_id=result["exec_id"], after=at, limit=1)
        past = await rig.done("process_output", exec_id=result["exec_id"], after=10_000)
    assert (inside["offset"], inside["output"]) == (at + 2, "\ufffd€")
    assert (one["offset"], one["next"], one["output"]) == (at, at + 2, "ä")
    assert past["output"] == ""
    assert past["next"] == past["offset"] == result["next"]


def most_in_a_second(rig: ExecRig, exec_id: str) -> int:
    """Return how many bytes of a process's output were published at most within one second."""
    pieces = [
        (datetime.fromisoformat(event["time"]).timestamp(), len(event["data"]["output"].encode()))
        for event in rig.events
        if "output" in event["data"] and event["data"]["exec_id"] == exec_id
    ]
    return max(sum(n for at, n in pieces if begun <= at < begun + 1) for begun, _ in pieces)


async def test_of_much_output_the_beginning_and_the_end_are_kept(rig: ExecRig) -> None:
    size = 40_000_000
    async with rig.living():
        command = f"yes 1234567 | head -c {size}"
        result = await rig.done("execute", command=command, wait_seconds=60)
        output, after, gaps = len(result["output"]), result["next"], 0
        while True:
            page = await rig.done("process_output", exec_id=result["exec_id"], after=after)
            gaps += page["offset"] - after
            if not page["output"]:
                break
            assert (
                page["output"]
                == ("1234567\n" * (256 * 1024 // 8 + 2))[page["offset"] % 8 :][
                    : len(page["output"])
                ]
            )
            output, after = output + len(page["output"]), page["next"]
        exited = await rig.exited(result["exec_id"])

    assert after == exited["size"] == size
    assert output == 10 * MIB
    assert page["dropped"] == gaps == size - 10 * MIB
    published = rig.published("exec_output", result["exec_id"])
    assert all(len(p["output"]) == p["next"] - p["offset"] <= 32 * 1024 for p in published)
    assert published[0]["offset"] == 0
    offsets = [p["offset"] for p in published]
    assert offsets == sorted(offsets)
    assert most_in_a_second(rig, result["exec_id"]) <= MIB


async def test_an_answer_fits_whatever_json_needs(rig: ExecRig) -> None:
    async with rig.living():
        result = await rig.done("execute", command="head -c 400000 /dev/zero")
        assert 0 < len(result["output"]) < 256 * 1024
        whole = await rig.whole(result["exec_id"])
        assert whole == "\0" * 400_000
        with pytest.raises(ServiceError, match="413"):
            await rig.ask("execute", command="true", stdin="x" * 530_000)


async def test_the_same_call_is_done_once(rig: ExecRig) -> None:
    async with rig.living():
        call, command = new_id(), "echo once >> runs; sleep 0.2; cat runs"
        answers = await asyncio.gather(
            *(rig.done("execute", call, command=command, wait_seconds=5) for _ in range(100))
        )
        assert all(answer == answers[0] for answer in answers)
        assert answers[0]["output"] == "once\n"
        with pytest.raises(ServiceError, match="409"):
            await rig.ask("execute", call, command="true")
        with pytest.raises(ServiceError, match="409"):
            await rig.ask("write_file", call, path="x", content="")
        edit = {"path": "runs", "edits": [{"old": "once", "new": "twice once"}]}
        first = await rig.done("edit_file", call_2 := new_id(), **edit)
        assert await rig.done("edit_file", call_2, **edit) == first == {"replaced": 1}
        failed = await rig.ask("write_file", call_3 := new_id(), path="no/where", content="")
        (rig.workspace / "no").mkdir()
        assert await rig.ask("write_file", call_3, path="no/where", content="") == failed
    assert (rig.workspace / "runs").read_text() == "twice once\n"


async def test_no_more_than_64_processes_run(rig: ExecRig) -> None:
    async with rig.living():
        slow = {"command": "read x", "open_stdin": True, "wait_seconds": 0}
        running = await asyncio.gather(*(rig.done("execute", **slow) for _ in range(64)))
        call = new_id()
        with pytest.raises(ServiceError, match="429"):
            await rig.ask("execute", call, **slow)
        await rig.done("process_input", exec_id=running[0]["exec_id"], close=True)
        await rig.exited(running[0]["exec_id"])
        assert (await rig.done("execute", call, **slow))["status"] == "running"
        await asyncio.gather(
            *(rig.done("process_signal", exec_id=one["exec_id"], signal="KILL") for one in running)
        )


async def test_a_request_that_does_not_name_chat_and_agent_is_ignored(rig: ExecRig) -> None:
    async with rig.living():
        named = {"chat_id": rig.chat, "agent_id": rig.agent, "call_id": new_id(), "args": {}}
        for body in ({**named, "chat_id": new_id()}, {**named, "agent_id": new_id()}, {}, []):
            asked = asyncio.create_task(rig.request("process_list", json.dumps(body).encode()))
            await rig.done("process_list")  # it has passed the other one, which came first
            assert not asked.done()
            asked.cancel()
    with pytest.raises(NoResponder):
        await rig.request("process_list", b"{}")
