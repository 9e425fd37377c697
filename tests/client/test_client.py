"""The Python client against a running workspaced: what a chat service does with it."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import workspaced
from workspaced.connection import WITHIN
from workspaced.processes import Process

from bus import subjects
from bus.jetstream import connect as connect_bus
from tests.cli.template_folders import folder
from tests.rigs.messages import new_id
from tests.rigs.processes import (
    ROOT,
    Up,
    environment,
    kill_processes,
    processes_using,
    start_up,
    up,
)
from tests.rigs.proxy import proxy

TEMPLATE = """
name = "python"
pool = "local"

[[parameter]]
name = "size"
type = "number"
default = 1
validation_min = 1
validation_max = 9

[build]
start = "echo first line; test $WORKSPACED_PARAM_SIZE != 9 || sleep 60; echo last line"

[[agent]]
name = "main"
startup_script = "echo from the agent"
"""
OWNER = workspaced.Owner(id=new_id(), name="ada")
TIMEOUT = 60.0


def new_chat(ws: workspaced.Workspaced) -> workspaced.Chat:
    return ws.chat(new_id(), owner=OWNER)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    parent = tmp_path_factory.mktemp("client")
    with up(parent / "data") as server:
        server.data("template", "push", folder(parent, TEMPLATE))
        yield server


def key(running: Up, role: str = "chat-service") -> Path:
    return running.directory / f"credentials/{role}.nk"


@pytest.fixture
async def ws(running: Up) -> AsyncIterator[workspaced.Workspaced]:
    async with (
        asyncio.timeout(TIMEOUT),
        workspaced.connect(running.nats, key=key(running), service="mybot") as connected,
    ):
        yield connected


async def followed(call: workspaced.Call) -> tuple[list[workspaced.State], str]:
    events = [event async for event in call]
    states = [event for event in events if isinstance(event, workspaced.State)]
    return states, "".join(event.output for event in events if isinstance(event, workspaced.Log))


async def test_a_chat_service_creates_repeats_and_runs_a_command(ws: workspaced.Workspaced) -> None:
    chat = ws.chat(new_id(), owner=OWNER)
    call = await chat.call("create_workspace", {"template": "python"}, call_id="create")

    states, log = await followed(call)
    answer = await call

    assert answer.ok, answer
    assert states[0].version == 0
    versions = [state.version for state in states]
    assert versions == sorted(set(versions))
    assert states[-1].state == "ready"
    for line in ("first line", "last line"):
        assert log.count(line) == 1, log

    again = await chat.call("create_workspace", {"template": "python"}, call_id="create")
    assert (await again).result == answer.result
    states, log = await followed(ws.call(chat.id, "create"))
    assert [state.state for state in states] == ["ready"]
    assert log.count("first line") == 1

    async for event in chat.watch():  # lines of the agent may come after the answer
        if isinstance(event, workspaced.Log) and "from the agent" in event.output:
            break

    async with chat.execute("echo one; echo two; exit 3") as process:
        assert "".join([piece async for piece in process]) == "one\ntwo\n"
        assert (await process.wait()).exit_code == 3
    call = await chat.call("execute", {"command": "echo of a model"})
    states, log = await followed(call)
    assert (await call).result["output"] == "of a model\n"
    assert ([state.state for state in states], log) == (
        ["ready"],
        "",
    )  # no build, and no log of one

    async with chat.execute("cat", open_stdin=True) as process:
        await process.write("typed")
        await process.close_input()
        assert "".join([piece async for piece in process]) == "typed"

    issued = await chat.frontend_key(timedelta(minutes=10))
    assert issued.keys() >= {"seed", "inbox_prefix", "expires_at"}


async def test_the_program_for_frontends_shows_the_log_from_its_first_line(
    running: Up, ws: workspaced.Workspaced, tmp_path: Path
) -> None:
    chat = new_chat(ws)
    assert (await (await chat.call("create_workspace", {"template": "python"}))).ok
    (tmp_path / "key.json").write_text(json.dumps(await chat.frontend_key(), default=str))
    words = ["-u", "-c", program("docs/frontends.md"), running.nats, "key.json", chat.id]
    page = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert page.stdout is not None
        assert await page.stdout.readline() == b"ready\n"
        shown = b""
        while b"from the agent" not in shown:
            shown += await page.stdout.readline()
        assert shown.count(b"first line") == 1
    finally:
        page.kill()
        await page.communicate()
    with pytest.raises(workspaced.Refused, match="may not subscribe"):
        async with workspaced.connect(
            running.nats, key=tmp_path / "key.json", service="page"
        ) as other:
            await anext(new_chat(other).watch())


async def test_a_command_that_ended_with_the_first_answer_needs_no_other_tool() -> None:
    """An agent may have `execute` only, as the example in docs/agents.md."""
    first = {"exec_id": new_id(), "status": "exited", "exit_code": 3, "output": "one é\n"}
    unused: Any = None
    process = Process(unused, new_id(), {**first, "offset": 0, "next": 7})

    assert [piece async for piece in process] == ["one é\n"]
    assert [piece async for piece in process.pieces(4)] == [(4, 7, "é\n")]
    assert (await process.wait()).exit_code == 3


async def test_values_that_do_not_fit_are_an_answer_with_validations(
    ws: workspaced.Workspaced,
) -> None:
    chat = ws.chat(new_id(), owner=OWNER)
    args = {"template": "python", "parameters": {"size": 12}}

    answer = await (await chat.call("create_workspace", args))

    assert not answer.is_error
    assert not answer.ok
    assert [one["field"] for one in answer.result["validations"]] == ["size"]
    with pytest.raises(workspaced.CannotRun) as caught:
        async with chat.execute("true"):
            pass
    assert caught.value.next_step == "create_workspace"
    assert str(caught.value).count("create_workspace") == 1


async def test_a_build_is_canceled_from_another_connection(
    running: Up, ws: workspaced.Workspaced
) -> None:
    chat = ws.chat(new_id(), owner=OWNER)
    args = {"template": "python", "parameters": {"size": 9}}
    call = await chat.call("create_workspace", args, call_id="slow")
    async for event in call:
        if isinstance(event, workspaced.Log) and "first line" in event.output:
            break

    async with workspaced.connect(running.nats, key=key(running), service="other") as other:
        same = other.call(chat.id, "slow")
        assert await same.cancel(build=True)
        states, log = await followed(same)

    answer = await call
    assert not answer.ok
    assert log.count("first line") == 1
    assert states[-1].failure is not None
    assert states[-1].failure.reason == "build_canceled"
    assert str(states[-1]).startswith("failed (build_canceled): ")


async def test_what_happens_while_the_connection_is_lost_is_neither_lost_nor_doubled(
    running: Up, ws: workspaced.Workspaced
) -> None:
    port = urlsplit(running.nats).port
    async with (
        proxy(lambda: asyncio.open_connection("127.0.0.1", port)) as between,
        workspaced.connect(
            f"nats://127.0.0.1:{between.port}", key=key(running), service="cut"
        ) as cut_off,
    ):
        chat = cut_off.chat(new_id(), owner=OWNER)
        call = await chat.call("create_workspace", {"template": "python"}, call_id="cut")
        following = asyncio.create_task(followed(call))
        between.cut()
        elsewhere = await ws.call(chat.id, "cut")
        between.mend()

        answer = await call
        states, log = await following

    assert answer.result == elsewhere.result
    versions = [state.version for state in states]
    assert versions == sorted(set(versions))
    assert states[-1].state == "ready"
    assert log.count("first line") == log.count("last line") == 1


async def test_a_request_fails_when_the_connection_stays_lost(running: Up) -> None:
    port = urlsplit(running.nats).port
    async with (
        proxy(lambda: asyncio.open_connection("127.0.0.1", port)) as between,
        workspaced.connect(
            f"nats://127.0.0.1:{between.port}", key=key(running), service="cut"
        ) as cut_off,
    ):
        between.hold_answers(b"rpc.get_chat")
        asking = asyncio.create_task(cut_off.rpc("get_chat", chat_id=new_id()))
        await between.held()
        between.cut()

        with pytest.raises(workspaced.Unavailable, match="may have arrived"):
            await asking


async def test_other_arguments_under_a_call_id_conflict(ws: workspaced.Workspaced) -> None:
    chat = ws.chat(new_id(), owner=OWNER)
    first = await (await chat.call("list_templates", {}, call_id="one"))

    with pytest.raises(workspaced.CallConflict) as caught:
        await (await chat.call("list_templates", {"query": "x"}, call_id="one"))

    assert caught.value.answer is not None
    assert caught.value.answer.result == first.result


async def test_what_is_not_permitted_or_not_there_raises_at_once(
    running: Up, ws: workspaced.Workspaced
) -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(workspaced.Refused, match=r"workspaced\.rpc\.issue_credential"):
        await ws.rpc("issue_credential", role="operator")
    with pytest.raises(workspaced.Refused):
        await ws.rpc("get_chatt", chat_id=new_id())
    with pytest.raises(workspaced.Invalid, match="chat_id"):
        await ws.rpc("get_chat", chat_id="x")
    with pytest.raises(workspaced.NotFound, match="neither open nor answered"):
        await ws.call(new_id(), "never")
    async with workspaced.connect(
        running.nats, key=key(running, "operator"), service="op"
    ) as operator:
        with pytest.raises(workspaced.Unavailable, match="nobody serves"):
            await operator.rpc("get_chatt", chat_id=new_id())
    assert asyncio.get_running_loop().time() - started < WITHIN


async def test_a_wrong_key_and_a_missing_server_are_told_apart(running: Up, tmp_path: Path) -> None:
    with pytest.raises(workspaced.Refused, match="can't be read"):
        async with workspaced.connect(running.nats, key=tmp_path / "no.nk", service="s"):
            pass
    with pytest.raises(workspaced.Unavailable, match="no NATS at"):
        async with workspaced.connect("nats://127.0.0.1:1", key=key(running), service="s"):
            pass


@pytest.mark.filterwarnings(
    "ignore:parameter 'timeout' of type 'float'"
)  # how nats-py calls aiohttp
async def test_a_websocket_carries_the_same(running: Up) -> None:
    websocket = running.ready["websocket"]
    async with workspaced.connect(websocket, key=key(running), service="page") as ws:
        assert (await ws.rpc("get_chat", chat_id=new_id()))["state"] == "none"
    seed = key(running).read_text().strip()
    async with await connect_bus(
        websocket, name="test", seed=seed, inbox_prefix="_INBOX_chat-service"
    ) as bus:
        reply = await bus.request(
            subjects.rpc("get_chat"), json.dumps({"chat_id": new_id()}).encode(), timeout=WITHIN
        )
    assert reply


@pytest.mark.parametrize(
    "module", ["workspaced.client", "workspaced.provisioning", "handlers.agent.__main__"]
)
def test_only_a_websocket_needs_aiohttp_which_is_slow_to_import(module: str) -> None:
    code = f"import sys, {module}; print({{'aiohttp', 'pydantic_settings'}} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_each_format_of_the_tools_has_what_its_api_wants() -> None:
    (openai, anthropic, mcp) = (workspaced.tools(name) for name in ("openai", "anthropic", "mcp"))

    assert [tool["function"]["name"] for tool in openai] == [tool["name"] for tool in anthropic]
    assert [tool["inputSchema"] for tool in mcp] == [tool["input_schema"] for tool in anthropic]
    assert "execute" not in [tool["name"] for tool in workspaced.tools(execute=False)]


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda ws: ws.chat("C"), "chat_id must be a lower-case UUID, and is 'C'"),
        (lambda ws: ws.chat(new_id().upper(), owner=OWNER), "chat_id must be a lower-case UUID"),
        (lambda ws: ws.call(new_id(), "a b"), "call_id must be 1 to 128 of A-Z"),
        (
            lambda ws: ws.chat(new_id(), owner=workspaced.Owner(id="ada", name="ada")),
            "owner.id must be a lower-case UUID",
        ),
        (
            lambda ws: ws.chat(new_id(), owner=workspaced.Owner(id=new_id())),
            "give a workspaced.Owner(id=…, name=…): name: Field required",
        ),
        (
            lambda ws: ws.chat(new_id(), owner=workspaced.Owner(id=7, name="ada")),
            "id: Input should be a valid string",
        ),
        (
            lambda ws: ws.chat(new_id(), owner="ada"),
            "owner must be a workspaced.Owner(id=…, name=…)",
        ),
        (lambda ws: new_chat(ws).call("create_workspace", ["python"]), "args must be a dict"),
        (lambda ws: new_chat(ws).call("create_workspace", {"template": object()}), "are no JSON"),
        (lambda ws: new_chat(ws).call(None), "tool must be the name of a tool"),
        (lambda ws: new_chat(ws).frontend_key(600), "ttl must be a datetime.timedelta"),
        (lambda ws: new_chat(ws).keep(600), "duration must be a datetime.timedelta"),
    ],
)
async def test_what_is_wrong_is_refused_in_words_before_anything_is_sent(
    ws: workspaced.Workspaced, use: Callable[[workspaced.Workspaced], Any], words: str
) -> None:
    with pytest.raises(workspaced.Invalid, match=re.escape(words)):
        await use(ws)


@pytest.mark.parametrize(
    ("url", "given", "words"),
    [
        ("http://127.0.0.1:4222", None, "url must be like nats://127.0.0.1:4222"),
        ("", None, "url must be like"),
        (None, None, "url must be like"),
        (None, {}, "`seed` and `inbox_prefix`"),
        (None, b"SU", "key must be the path of a file"),
    ],
)
async def test_what_can_be_no_url_or_key_is_refused_in_words(
    running: Up, url: Any, given: Any, words: str
) -> None:
    url = running.nats if given is not None else url
    with pytest.raises(workspaced.Invalid, match=re.escape(words)):
        async with workspaced.connect(
            url, key=key(running) if given is None else given, service="s"
        ):
            pass


async def test_a_key_of_another_role_is_told_so(running: Up) -> None:
    with pytest.raises(workspaced.Refused, match="none of a chat service, a provisioner or an"):
        async with workspaced.connect(running.nats, key=key(running, "gateway"), service="s"):
            pass
    async with workspaced.connect(running.nats, key=key(running, "provisioner"), service="s") as ws:
        with pytest.raises(workspaced.Refused, match="another role"):
            await new_chat(ws).call("list_templates")


async def test_all_calls_share_one_subscription_to_answers(ws: workspaced.Workspaced) -> None:
    client = ws._connection._client
    chat = ws.chat(uuid4(), owner=workspaced.Owner(id=uuid4(), name="ada"))
    before = len(client._subs)

    async def ask(call_id: str) -> bool:
        call = await chat.call("list_templates", call_id=call_id)
        assert len(client._subs) == before + 1
        return (await call).ok

    answers = await asyncio.gather(*(ask(f"call-{number % 5}") for number in range(20)))

    assert answers == [True] * 20
    assert ws._service._waiting == {}


async def test_a_tool_that_needs_the_owner_says_so(ws: workspaced.Workspaced) -> None:
    with pytest.raises(workspaced.Invalid, match="owner"):
        await ws.chat(new_id()).call("list_templates")
    with pytest.raises(workspaced.Invalid, match="call_id"):
        await ws.chat(new_id(), owner=OWNER).call("list_templates", call_id="a.b")


async def test_log_lines_that_cannot_be_read_are_ignored(
    running: Up, ws: workspaced.Workspaced
) -> None:
    """Whoever runs in a workspace may publish anything on the log subject of its build."""
    chat = ws.chat(new_id(), owner=OWNER)
    call = await chat.call("create_workspace", {"template": "python"}, call_id="log")
    answer = await call
    watching = chat.watch(old_log=False)
    await anext(watching)
    subject = f"workspaced.log.{chat.id}.{answer.result['build_id']}"
    async with workspaced.connect(
        running.nats, key=key(running, "operator"), service="op"
    ) as operator:
        line = {"origin": "agent", "sequence": 10**6, "output": "of another build", "build_id": "x"}
        for body in (b"", b"[]", b"{}", b'{"data": 1}', b'{"data": {"sequence": []}}'):
            await operator._connection.request(subject, body)
        await operator._connection.request(subject, json.dumps({"data": line}).encode())
    async for event in watching:
        if isinstance(event, workspaced.Log) and event.sequence == 10**6:
            assert event.build_id == answer.result["build_id"]
            break
    await watching.aclose()


def test_the_examples_in_docstrings_run() -> None:
    folder_of_client = ROOT / "client/workspaced"
    tried = 0
    for file in sorted(folder_of_client.glob("*.py")):
        module = importlib.import_module(f"workspaced.{file.stem}".removesuffix(".__init__"))
        failed, run = doctest.testmod(module, raise_on_error=True)
        assert not failed
        tried += run
    assert tried > 0
    assert (folder_of_client / "py.typed").exists()


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that contains nothing but the client's wheel."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    python = place / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, ROOT / "client"], check=True, env=environment({"PYTHONPATH": ""}))
    return python


def program(page: str) -> str:
    found = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_wheel_alone_runs_the_readme_and_imports_no_server_package(
    running: Up, bare_python: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [bare_python, "-c", program("client/README.md"), running.nats, key(running), "python"],
        env=environment({"PYTHONPATH": ""}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert '"created": true' in done.stdout
    code = (
        "import sys, time; started = time.process_time(); import workspaced; workspaced.connect, workspaced.State; "
        "print(time.process_time() - started, {'bus', 'handlers', 'statemachine'} & sys.modules.keys())"
    )
    runs = [
        subprocess.run(
            [bare_python, "-c", code],
            env=environment({"PYTHONPATH": ""}),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(3)
    ]
    taken = [run.stdout.split(maxsplit=1) for run in runs]
    assert {modules.strip() for _, modules in taken} == {"set()"}
    assert min(float(seconds) for seconds, _ in taken) < 0.3


class TestTheLoopOfTheGuide:
    """With the wheel alone: create with live log, a validation error, a command, a restart, and cancel."""

    @pytest.fixture
    def start(
        self, running: Up, bare_python: Path, tmp_path: Path
    ) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
        loop = program("docs/chat-services.md")
        assert len([line for line in loop.splitlines() if line.strip()]) <= 15
        started: list[subprocess.Popen[str]] = []

        def start(chat: str) -> subprocess.Popen[str]:
            words = [bare_python, "-u", "-c", loop, running.nats, key(running), chat, OWNER.id]
            process = subprocess.Popen(
                [*map(str, words)],
                env=environment({"PYTHONPATH": ""}),
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def ask(self, process: subprocess.Popen[str], call: str, tool: str, **args: object) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"id": call, "name": tool, "input": args}) + "\n")
        process.stdin.flush()

    def until(self, process: subprocess.Popen[str], words: str) -> list[str]:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.strip())
            if words in line:
                return lines
        raise AssertionError(f"no {words!r} in {lines}: {process.stderr and process.stderr.read()}")

    def test_a_wrong_value_then_a_workspace_and_a_command(
        self, start: Callable[[str], subprocess.Popen[str]]
    ) -> None:
        bot = start(new_id())
        wrong = {"template": "python", "parameters": {"size": 12}}
        self.ask(bot, "1", "create_workspace", **wrong)
        assert json.loads(self.until(bot, "{")[-1])["validations"][0]["field"] == "size"
        self.ask(bot, "2", "create_workspace", template="python")
        created = self.until(bot, "{")
        assert json.loads(created[-1])["created"] is True
        assert created.index("building") < created.index("first line")
        self.ask(bot, "3", "execute", command="echo of a model")
        assert json.loads(self.until(bot, "{")[-1])["output"] == "of a model\n"

    def test_a_restart_with_the_same_call_id_and_a_cancel(
        self, start: Callable[[str], subprocess.Popen[str]]
    ) -> None:
        chat, slow = new_id(), {"template": "python", "parameters": {"size": 9}}
        killed = start(chat)
        self.ask(killed, "slow", "create_workspace", **slow)
        self.until(killed, "first line")
        killed.kill()

        bot = start(chat)
        self.ask(bot, "slow", "create_workspace", **slow)
        assert self.until(bot, "first line").count("first line") == 1
        bot.send_signal(signal.SIGINT)
        answered = self.until(bot, "{")
        assert "canceled" in json.loads(answered[-1])["error"]
        out, err = bot.communicate(timeout=TIMEOUT)
        assert (bot.returncode, out, err) == (0, "", "")


SLOW = """
name = "slow"
pool = "local"

[build]
start = "echo first line"

[[agent]]
name = "main"
startup_script = "echo from the agent; until [ -e go ]; do sleep 0.1; done; echo agent done"
"""


async def test_a_call_goes_on_over_a_restart_of_everything(tmp_path: Path) -> None:
    """NATS, gateway and worker are away for a while; the log comes from its first line, and nothing twice."""
    directory = tmp_path / "data"
    first = await asyncio.to_thread(start_up, directory)
    try:
        first.data("template", "push", folder(tmp_path, SLOW))
        async with (
            asyncio.timeout(2 * TIMEOUT),
            workspaced.connect(first.nats, key=key(first), service="mybot") as ws,
        ):
            chat = ws.chat(new_id(), owner=OWNER)
            call = await chat.call("create_workspace", {"template": "slow"}, call_id="over")
            following = asyncio.create_task(followed(call))
            async with aclosing(chat.watch()) as events:
                async for event in events:
                    if isinstance(event, workspaced.Log) and "from the agent" in event.output:
                        break
            await asyncio.to_thread(first.process.stop)
            with pytest.raises(workspaced.Unavailable):
                await ws.rpc("get_chat", chat_id=chat.id)
            second = await asyncio.to_thread(start_up, directory)
            (workspace,) = (directory / "provisioner/local/workspaces").glob("[!.]*")
            (workspace / "go").touch()
            answer = await call
            states, log = await following
            await asyncio.to_thread(second.process.stop)
    finally:
        kill_processes(processes_using(directory))

    assert answer.ok, answer
    versions = [state.version for state in states]
    assert versions == sorted(set(versions))
    assert states[-1].state == "ready"
    assert log.count("first line") == log.count("from the agent") == 1
