"""The tools that run commands and use files, by rpc, with the agent that the local provisioner starts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest

from tests.cli.template_folders import folder
from tests.rigs.client import ChatService, ServiceError, connected, role_options
from tests.rigs.messages import Event, new_id
from tests.rigs.shapes import is_time
from tests.rigs.world import Deployment

TEMPLATE = """
name = "working"
pool = "local"

[[parameter]]
name = "token"
sensitive = true
default = "correct-horse-battery"

[build]
start = "mkdir -p project"

[[agent]]
name = "main"
directory = "project"
env = { OF_TEMPLATE = "t" }
"""
SECRET = "correct-horse-battery"
ORGANIZATION = str(uuid5(NAMESPACE_URL, "organization of tests/wire/test_exec_tools.py"))
"""One of its own: other tests list all templates of theirs."""
BEGUN = {"exec_id", "status", "output", "offset", "next"}


@dataclass
class Workspace:
    """A workspace that is ready, and who asks for things in it."""

    service: ChatService
    chat: str
    workspace_id: str

    async def ask(self, tool: str, call_id: str = "", /, **args: Any) -> Event:
        call_id = call_id or new_id()
        answer = await self.service.rpc(tool, chat_id=self.chat, call_id=call_id, args=args)
        assert answer.keys() == {"call_id", "tool", "is_error", "result"}
        assert (answer["call_id"], answer["tool"]) == (call_id, tool)
        return dict(answer)

    async def done(self, tool: str, call_id: str = "", /, **args: Any) -> Event:
        answer = await self.ask(tool, call_id, **args)
        assert answer["is_error"] is False, answer
        return dict(answer["result"])

    async def failed(self, tool: str, **args: Any) -> str:
        """Ask for what can't be done, and return the words."""
        answer = await self.ask(tool, **args)
        assert answer["is_error"] is True, answer
        assert answer["result"].keys() == {"error"}
        return str(answer["result"]["error"])

    async def refused(self, code: int, tool: str, call_id: str = "", /, **args: Any) -> None:
        with pytest.raises(ServiceError) as error:
            await self.ask(tool, call_id, **args)
        assert error.value.code == code

    async def shows(self, exec_id: str, words: str) -> str:
        """Read the output of a process until it contains the words."""
        text, after = "", 0
        while words not in text:
            page = await self.done("process_output", exec_id=exec_id, after=after, wait_seconds=20)
            assert page["output"], f"it ended without {words!r}: {text!r}"
            text, after = text + page["output"], page["next"]
        return text


@pytest.fixture(scope="module")
def template(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> str:
    assert deployment.up is not None
    path = folder(tmp_path_factory.mktemp("templates"), TEMPLATE)
    pushed = deployment.up.data("template", "push", path, "--organization", ORGANIZATION)
    return str(pushed["template_id"])


_made: dict[str, str] = {}


@pytest.fixture
async def workspace(deployment: Deployment, template: str) -> AsyncIterator[Workspace]:
    """The one workspace of all these tests."""
    options = role_options(deployment.credentials, "chat-service")
    async with connected(ChatService(), deployment.nats, **options) as service:
        chat_id = _made.setdefault(template, new_id())
        owner = {"organization_id": ORGANIZATION, "owner_id": chat_id, "owner_name": "ann"}
        create = {"chat_id": chat_id, "call_id": "create", "args": {"template_id": template}}
        answer = await service.rpc("create_workspace", **create, **owner)
        assert answer["result"].get("created"), answer
        state = await service.last_state(chat_id)
        assert state is not None
        yield Workspace(service, chat_id, state["workspace"]["id"])


async def test_a_command_gets_what_it_was_given_and_is_answered_with_how_it_ended(
    workspace: Workspace,
) -> None:
    call = new_id()
    command = (
        'echo "${PWD##*/} $OF_TEMPLATE $MINE $WORKSPACED_PARAM_TOKEN"; cat; echo end >&2; exit 3'
    )
    args = {"command": command, "env": {"MINE": "m"}, "stdin": "aW4K", "encoding": "base64"}
    result = await workspace.done("execute", call, **args)

    output = "project t m ***\nin\nend\n"
    assert result == {
        "exec_id": str(uuid5(NAMESPACE_URL, f"workspaced:{workspace.workspace_id}:{call}")),
        "status": "exited",
        "exit_code": 3,
        "output": output,
        "offset": 0,
        "next": len(output),
    }
    # Another time to wait is the same content, and the answer is about the same process.
    assert await workspace.done("execute", call, **args, wait_seconds=1) == result
    await workspace.refused(409, "execute", call, command="true")
    await workspace.refused(409, "write_file", call, path="x", content="")
    page = {"exec_id": result["exec_id"], "after": 8, "limit": 1}
    assert await workspace.done("process_output", **page) == {
        **result,
        "output": "t",
        "offset": 8,
        "next": 9,
    }
    killed = await workspace.done("execute", command="kill -KILL $$", cwd="/")
    assert killed.keys() == BEGUN | {"signal"}
    assert killed["signal"] == "KILL"
    late = await workspace.done("execute", command="sleep 60", timeout_seconds=0.1)
    assert late.keys() == BEGUN | {"signal", "reason"}
    assert (late["status"], late["signal"], late["reason"]) == ("exited", "TERM", "timeout")
    listed = (await workspace.done("process_list"))["processes"]
    entry = next(one for one in listed if one["exec_id"] == result["exec_id"])
    assert entry.keys() == {"exec_id", "command", "status", "started_at", "ended_at", "exit_code"}
    assert (entry["command"], entry["status"], entry["exit_code"]) == (command, "exited", 3)
    assert is_time(entry["started_at"])
    assert is_time(entry["ended_at"])
    assert "nowhere" in await workspace.failed("execute", command="true", cwd="nowhere")
    assert SECRET not in await workspace.failed("execute", command="true", cwd=SECRET)
    assert "no process" in await workspace.failed("process_output", exec_id=new_id())


async def test_a_process_takes_input_sizes_and_signals(workspace: Workspace) -> None:
    shell = "stty -echo; stty size; read x; stty size; read x; echo got $x"
    size = {"cols": 99, "rows": 9}
    begun = await workspace.done("execute", command=shell, pty=size, wait_seconds=0)
    assert begun.keys() == BEGUN
    assert begun["status"] == "running"
    to = {"exec_id": begun["exec_id"]}
    await workspace.shows(begun["exec_id"], "9 99\r\n")
    assert await workspace.done("process_input", **to, cols=120, rows=40) == {"written": 0}
    assert await workspace.done("process_input", **to, data="\n") == {"written": 1}
    await workspace.shows(begun["exec_id"], "40 120\r\n")
    call = new_id()
    once = {**to, "data": "b25l", "encoding": "base64"}
    for _ in range(2):
        assert await workspace.done("process_input", call, **once) == {"written": 3}
    await workspace.done("process_input", **to, data="\n")
    await workspace.shows(begun["exec_id"], "got one\r\n")
    assert "closed" in await workspace.failed("process_input", **to, data="x")

    trap = "trap 'echo usr1' USR1; echo trapped; until read x; do :; done; exit 5"
    trapping = await workspace.done("execute", command=trap, open_stdin=True, wait_seconds=0)
    to = {"exec_id": trapping["exec_id"]}
    await workspace.shows(trapping["exec_id"], "trapped\n")
    assert "terminal" in await workspace.failed("process_input", **to, cols=9)
    signaled = await workspace.done("process_signal", **to, signal="USR1")
    assert signaled == {"signaled": True}
    await workspace.shows(trapping["exec_id"], "usr1\n")
    assert await workspace.done("process_input", **to, data="\n", close=True) == {"written": 1}
    end = await workspace.done("process_output", **to, after=999, wait_seconds=20)
    while end["status"] == "running":
        end = await workspace.done("process_output", **to, after=999, wait_seconds=20)
    assert (end["exit_code"], end["output"], end["offset"]) == (5, "", end["next"])
    assert await workspace.done("process_signal", **to, signal="TERM") == {"signaled": False}
    assert "signal" in await workspace.failed("process_signal", **to, signal="STOP")


async def test_no_more_than_64_processes_run_in_a_workspace(workspace: Workspace) -> None:
    slow = {"command": "read x", "open_stdin": True, "wait_seconds": 0}

    async def begin(_: int) -> str | int:
        try:
            return str((await workspace.done("execute", **slow))["exec_id"])
        except ServiceError as error:
            return error.code

    begun = await asyncio.gather(*map(begin, range(66)))
    started = [exec_id for exec_id in begun if isinstance(exec_id, str)]
    assert (len(started), begun.count(429)) == (64, 2)
    for exec_id in started:
        await workspace.done("process_signal", exec_id=exec_id, signal="KILL")
    for exec_id in started:
        await workspace.done("process_output", exec_id=exec_id, wait_seconds=20)


async def test_files_are_written_edited_read_and_listed(workspace: Workspace) -> None:
    binary = base64.b64encode(bytes(range(256))).decode()
    write = {"path": "d/text", "content": "one\ntwo\none\n", "mode": "0600"}
    assert "create_directories" in await workspace.failed("write_file", **write)
    write["create_directories"] = True
    assert await workspace.done("write_file", **write) == {"size": 12}
    added = {"path": "d/text", "content": "three\n", "append": True}
    call = new_id()
    for _ in range(2):
        assert await workspace.done("write_file", call, **added) == {"size": 18}
    raw = {"path": "d/.raw", "content": binary, "encoding": "base64"}
    assert await workspace.done("write_file", **raw) == {"size": 256}

    twice = [{"old": "two", "new": "2"}, {"old": "one", "new": "1"}]
    error = await workspace.failed("edit_file", path="d/text", edits=twice)
    assert "2 times" in error
    assert "1, 3" in error
    missing = [{"old": "two", "new": "2"}, {"old": "four", "new": "4"}]
    assert "0 times" in await workspace.failed("edit_file", path="d/text", edits=missing)
    every = [{"old": "one", "new": "1", "all": True}, {"old": "two", "new": "zwei"}]
    assert await workspace.done("edit_file", path="d/text", edits=every) == {"replaced": 3}

    text = "1\nzwei\n1\nthree\n"
    whole = {"content": text, "encoding": "utf-8", "size": len(text)}
    assert await workspace.done("read_file", path="d/text") == whole
    page = await workspace.done("read_file", path="./d/../d/text", offset=2, limit=4)
    assert page == {**whole, "content": "zwei", "next": 6}
    of_raw = {"content": binary, "encoding": "base64", "size": 256}
    assert await workspace.done("read_file", path="d/.raw") == of_raw

    special = "cd d && ln -s text link && ln -s /nowhere broken && mkfifo fifo && mkdir sub && touch sub/x && pwd"
    made = await workspace.done("execute", command=special)
    assert made["exit_code"] == 0, made
    listed = await workspace.done("list_files", path="d", depth=2)
    assert listed.keys() == {"entries"}
    assert [(entry["path"], entry["kind"]) for entry in listed["entries"]] == [
        ("d/broken", "link"),
        ("d/fifo", "other"),
        ("d/link", "link"),
        ("d/sub", "directory"),
        ("d/sub/x", "file"),
        ("d/text", "file"),
    ]
    entry = listed["entries"][-1]
    assert entry.keys() == {"path", "kind", "size", "modified_at"}
    assert entry["size"] == len(text)
    assert is_time(entry["modified_at"])
    hidden = await workspace.done("list_files", path="d", hidden=True, after="d/")
    assert hidden["entries"][0]["path"] == "d/.raw"
    assert await workspace.done("read_file", path="d/link") == whole
    absolute = f"{made['output'].strip()}/text"
    assert await workspace.done("read_file", path=absolute) == whole
    for tool, more in (
        ("read_file", {}),
        ("write_file", {"content": ""}),
        ("edit_file", {"edits": [{"old": "a", "new": "b"}]}),
    ):
        assert "FIFO" in await workspace.failed(tool, path="d/fifo", **more)
        assert "directory" in await workspace.failed(tool, path="d/sub", **more)
        assert "workspaced" in await workspace.failed(tool, path="../.workspaced/x", **more)
    everything = await workspace.done("list_files", path="..", hidden=True)
    assert "../.workspaced" not in [one["path"] for one in everything["entries"]]
    assert "No such file" in await workspace.failed("read_file", path="d/broken")


async def test_a_request_and_an_answer_have_at_most_512_kib(workspace: Workspace) -> None:
    nuls = await workspace.done("execute", command="head -c 400000 /dev/zero; echo")
    assert 0 < len(nuls["output"]) < 256 * 1024
    read, after = nuls["output"], nuls["next"]
    while (page := await workspace.done("process_output", exec_id=nuls["exec_id"], after=after))[
        "output"
    ]:
        read, after = read + page["output"], page["next"]
    assert read == "\0" * 400_000 + "\n"
    await workspace.refused(413, "write_file", path="large", content="x" * 524_288)
    # NULs take six bytes each in JSON: the request is larger than the file.
    await workspace.refused(413, "write_file", path="large", content="\0" * 100_000)
    assert await workspace.done("write_file", path="large", content="x" * 500_000) == {
        "size": 500_000
    }
    page = await workspace.done("read_file", path="large", limit=10_000_000)
    assert (len(page["content"]), page["next"], page["size"]) == (262_144, 262_144, 500_000)


async def test_what_counts_as_absent_is_no_content(workspace: Workspace) -> None:
    call = new_id()
    first = await workspace.done("execute", call, command="cat", stdin="", wait_seconds=9)
    assert await workspace.done("execute", call, command="cat") == first
    begun = await workspace.done("execute", command="cat", open_stdin=True, wait_seconds=0)
    to = {"exec_id": begun["exec_id"]}
    call = new_id()
    assert await workspace.done("process_input", call, **to, data="", close=True) == {"written": 0}
    assert await workspace.done("process_input", call, **to, close=True) == {"written": 0}
    await workspace.done("write_file", path="same", content="same")
    call = new_id()
    for edits in (None, []):
        assert await workspace.done("edit_file", call, path="same", edits=edits) == {"replaced": 0}


async def test_wrong_arguments_are_named(workspace: Workspace) -> None:
    for tool, args, words in (
        ("execute", {}, "command"),
        ("execute", {"command": "true", "timeout_seconds": -1}, "timeout_seconds"),
        ("execute", {"command": "true", "pty": {"cols": 0}}, "cols"),
        ("execute", {"command": "cat", "stdin": "?", "encoding": "base64"}, "base64"),
        ("process_output", {"exec_id": new_id(), "after": -1}, "after"),
        ("process_input", {}, "exec_id"),
        ("process_signal", {"exec_id": new_id()}, "signal"),
        ("read_file", {}, "path"),
        ("write_file", {"path": "x", "content": "", "mode": "rw"}, "octal digits"),
        ("read_file", {"path": "x", "offset": 2**63}, "offset"),
        ("edit_file", {"path": "x"}, "edits"),
        ("edit_file", {"path": "x", "edits": [{"old": "a"}]}, "new"),
        ("list_files", {"depth": 0}, "depth"),
    ):
        assert words in await workspace.failed(tool, **args)
