"""Serves the requests of the gateway: the tools that run commands and use files in this workspace.

A request arrives on `workspaced.agent.<chat_id>.<agent_id>.<tool>` and is answered once. Requests are served side
by side. A call that changes something is done once: the agent notes it before (`call_notes`), and answers a repeated
request with the same `call_id` from its notes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from bus import Backoff, Bus, BusError, Message, ServiceError, subjects
from bus.services import error_reply
from handlers.agent.call_notes import CallNotes
from handlers.agent.exec_stream import ExecStream, PublishMany
from handlers.agent.processes import (
    MOST_RUNNING,
    CannotStart,
    Ended,
    KeeperGone,
    KeeperProgram,
    Note,
    Process,
    Processes,
)
from handlers.agent.workspace_files import Unusable, WorkspaceFiles, fitting
from handlers.publishing.agent_files import AgentConfig
from handlers.runtime import clock
from handlers.runtime.supervise import cancel_and_wait
from handlers.sandbox.shell import command_fault, environment_faults
from statemachine.codec import timestamp
from statemachine.exec_tools import (
    EXEC_TOOLS,
    LARGEST_BODY,
    LONGEST_WAIT,
    ONLY_LOOK,
    PAGE,
    EditFileArguments,
    ExecAnswer,
    ExecuteArguments,
    FileContent,
    FileEdited,
    FilesResult,
    FileWritten,
    HowItEnded,
    InputResult,
    ListedProcess,
    ListFilesArguments,
    ProcessesResult,
    ProcessInputArguments,
    ProcessListArguments,
    ProcessOutputArguments,
    ProcessSignalArguments,
    ProcessState,
    ReadFileArguments,
    SignalResult,
    WriteFileArguments,
    exec_id_of,
)
from statemachine.leniency import UnreadableError, read
from statemachine.mask import Mask

_TOO_LARGE, _TOO_MANY = 413, 429
_TERMINAL: Final = "xterm-256color"
_HERE: Final = "."
_COMMAND_SIZES: Final = (128 * 1024, 4096, 1024, 256, 64, 0)
"""Characters that a list shows of each command: the first number with which the list is small enough."""
_ERROR_SIZE: Final = 4096
_PUBLISHED_AGAIN_WITHIN: Final = 60.0
"""Seconds after its end in which a process is published again if NATS has crashed."""
_UNKNOWN_OUTCOME: Final = "the agent ended while it did this, so nobody knows whether it was done; look, and ask with a new call_id"
_STOPPING: Final = "the workspace is being stopped"

_log = logging.getLogger(__name__)


class _Stopping(Exception):
    """A command is not started because the workspace is being stopped."""


class ExecRequests:
    """The part of an agent that runs commands and uses files for the gateway."""

    def __init__(
        self,
        home: Path,
        config: AgentConfig,
        mask: Mask,
        publish_many: PublishMany,
        during: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`during` counts its context as activity in the workspace.

        The notes belong to the workspace, so they are beside the folders of its agents.

        """
        self._config, self._mask, self._publish_many = config, mask, publish_many
        self._during = during
        self._agents, own = home.parent, home.parent.parent
        root = own / "exec"
        self._files = WorkspaceFiles(own, config.directory / config.work_directory)
        self._notes = CallNotes(
            root / "calls.sqlite", lambda: [process.note.call_id for process in self._processes]
        )
        self._program = KeeperProgram(config.env, self._mask.values)
        self._processes = Processes(
            root / "processes",
            config.agent_id,
            self._program,
            may_run=self._is_of_this_build,
            added=self._publish,
            during=during,
        )
        self._in_progress: dict[str, asyncio.Future[ExecAnswer]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._streams: dict[ExecStream, asyncio.Task[None]] = {}
        self._complete: deque[tuple[float, ExecStream]] = deque(maxlen=MOST_RUNNING)
        """Streams that were complete lately, and when."""
        self._server_id = ""
        self._stopping = False

    def start(self) -> None:
        """Find the processes of this agent that are running, and publish what they do."""
        self._processes.load()

    async def serve(self, bus: Bus) -> NoReturn:
        """Answer requests on one connection, until cancelled."""
        self._compare_server(bus)
        bus.on_reconnect(lambda: self._compare_server(bus))
        wanted = subjects.agent_requests(self._config.chat_id, self._config.agent_id)
        backoff = Backoff(limit=30.0)
        while True:
            try:
                async with bus.subscribe(wanted) as requests:
                    backoff.reset()
                    async for message in requests:
                        self._spawn(self._serve_one(bus, message))
            except BusError as error:
                _log.info("requests can't be received now: %s", error)
            await backoff.wait()

    async def stop(self) -> None:
        """Take no more calls, and end all processes."""
        self._stopping = True
        await self._processes.stop()

    async def published(self) -> None:
        """Wait until everything is published that processes which have ended did."""
        if self._streams:
            await asyncio.wait(self._streams.values())

    async def close(self) -> None:
        """Leave the processes running."""
        await cancel_and_wait(*self._tasks, *self._streams.values())
        await self._processes.close()
        self._program.close()
        self._notes.close()

    # -- the protocol --------------------------------------------------------------------------

    async def _serve_one(self, bus: Bus, message: Message) -> None:
        body = self._addressed_to_us(message.data)
        if body is None or not message.reply:
            return
        headers = None
        with self._during():
            try:
                data = await self._reply(message, body)
            except ServiceError as error:
                data, headers = error_reply(error)
            except Exception as error:  # noqa: BLE001 — the others must be answered
                _log.exception("a request on %s failed", message.subject)
                data = _encoded(self._error(f"the agent failed: {type(error).__name__}"))
        with suppress(BusError):  # without an answer, the gateway asks again
            await bus.send(message.reply, data, headers=headers)

    def _addressed_to_us(self, data: bytes) -> dict[str, Any] | None:
        """Return the request, if it names this chat and this agent."""
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return None
        config = self._config
        if not isinstance(body, dict):
            return None
        named = (body.get("chat_id"), body.get("agent_id"))
        return body if named == (config.chat_id, config.agent_id) else None

    async def _reply(self, message: Message, body: Mapping[str, Any]) -> bytes:
        if len(message.data) > LARGEST_BODY:
            raise ServiceError(_TOO_LARGE, f"the request has more than {LARGEST_BODY:,} bytes")
        tool, call_id = message.subject.rpartition(".")[2], body.get("call_id")
        model = EXEC_TOOLS.get(tool)
        if model is None:
            return _encoded(self._error(f"there is no tool {tool!r}"))
        if not isinstance(call_id, str) or not call_id:
            return _encoded(self._error("`call_id` is missing"))
        try:
            args = read(model, body.get("args") or {}, "args")
        except UnreadableError as error:
            return _encoded(self._error(str(error)))
        return _encoded(await self._answer(tool, call_id, args))

    async def _answer(self, tool: str, call_id: str, args: Any) -> ExecAnswer:
        if tool in ONLY_LOOK:
            return await self._attempt(getattr(self, f"_{tool}")(args))
        content = args.model_dump(mode="json", exclude={"wait_seconds"})
        noted = self._notes.claim(call_id, tool, content)
        if noted is None and self._is_known(tool, call_id):
            # The notes were unreadable and began anew, but the process is still remembered.
            return await self._completed(tool, call_id, args, _started(self._exec_id(call_id)))
        if noted is None:
            done = self._in_progress[call_id] = asyncio.get_running_loop().create_future()
            self._spawn(self._do(tool, call_id, args, done))
        elif (found := self._in_progress.get(call_id)) is not None:
            done = found
        elif noted.answer is not None:
            return await self._completed(tool, call_id, args, noted.answer)
        elif tool == "execute":
            return await self._completed(tool, call_id, args, _started(self._exec_id(call_id)))
        else:
            return self._error(_UNKNOWN_OUTCOME)
        # Shielded: a request that is given up does not end what others wait for.
        return await self._completed(tool, call_id, args, await asyncio.shield(done))

    async def _do(
        self, tool: str, call_id: str, args: Any, done: asyncio.Future[ExecAnswer]
    ) -> None:
        """Do a call that was noted, note its answer, and give it to all who wait for it."""
        try:
            if tool == "execute":
                answer = await self._attempt(self._execute(call_id, args))
            else:
                answer = await self._attempt(getattr(self, f"_{tool}")(args))
            self._notes.settle(call_id, answer)
            done.set_result(answer)
        except ServiceError as error:
            self._notes.withdraw(call_id)
            done.set_exception(error)
        except _Stopping as error:
            # Nothing was done: after the next start, the same call may be.
            self._notes.withdraw(call_id)
            done.set_result(self._error(str(error)))
        except BaseException as error:
            failed = error if isinstance(error, Exception) else asyncio.CancelledError()
            done.set_exception(failed)
            raise
        finally:
            del self._in_progress[call_id]
            if not done.cancelled():
                done.exception()  # seen, also if nobody waits any more

    async def _completed(
        self, tool: str, call_id: str, args: Any, answer: ExecAnswer
    ) -> ExecAnswer:
        """Return the answer to a call; that of `execute` is about what the process does now."""
        if tool != "execute" or answer["is_error"]:
            return answer
        process = self._processes.get(self._exec_id(call_id))
        if process is None:
            return _answer({**answer["result"], **_LOST})
        await process.wait_until(lambda: process.ended is not None, _wait(args))
        return _answer(self._state(process, 0, PAGE))

    async def _attempt(self, work: Awaitable[Any]) -> ExecAnswer:
        try:
            return _answer(await work)
        except Unusable as error:
            return self._error(str(error))
        except OSError as error:
            return self._error(error.strerror or str(error))

    def _is_known(self, tool: str, call_id: str) -> bool:
        return tool == "execute" and self._processes.get(self._exec_id(call_id)) is not None

    def _error(self, text: str) -> ExecAnswer:
        return {"is_error": True, "result": {"error": self._mask.whole(text)[:_ERROR_SIZE]}}

    # -- processes -----------------------------------------------------------------------------

    async def _execute(self, call_id: str, args: ExecuteArguments) -> dict[str, Any]:
        """Start the command; `_completed` waits for its end."""
        if self._stopping:
            raise _Stopping(_STOPPING)
        if len(self._processes.running) >= MOST_RUNNING:
            raise ServiceError(
                _TOO_MANY,
                f"{MOST_RUNNING} processes are running in this workspace, which is the most: end one first",
            )
        if fault := command_fault(args.command):
            raise Unusable(fault)
        env = {**({"TERM": _TERMINAL} if args.pty else {}), **self._config.env, **args.env}
        for _, fault in environment_faults(env):
            raise Unusable(fault)
        stdin = None if args.stdin is None else _bytes(args.stdin, args.encoding)
        cwd = self._files.working_directory(args.cwd)
        note = Note(
            self._exec_id(call_id),
            call_id,
            self._config.agent_id,
            self._mask.whole(args.command),
            self._mask.whole(cwd),
            time.time(),
            terminal=args.pty is not None,
        )
        request = {
            "command": args.command,
            "cwd": cwd,
            "env": env,
            "open_stdin": args.open_stdin,
            "pty": None if args.pty is None else args.pty.model_dump(),
            "timeout_seconds": args.timeout_seconds,
        }
        try:
            await self._processes.start(note, request, stdin=stdin)
        except CannotStart as error:
            raise Unusable(str(error)) from error
        return {"exec_id": note.exec_id}

    async def _process_output(self, args: ProcessOutputArguments) -> ProcessState:
        process = self._process(args.exec_id)
        await process.wait_until(
            lambda: process.ended is not None or process.size > args.after, _wait(args)
        )
        return self._state(process, args.after, args.limit)

    async def _process_input(self, args: ProcessInputArguments) -> InputResult:
        process = self._process(args.exec_id)
        data = _bytes(args.data or "", args.encoding)
        size = {name: n for name, n in (("cols", args.cols), ("rows", args.rows)) if n is not None}
        given = {"data": base64.b64encode(data).decode(), "close": args.close, "size": size}
        try:
            answer = await process.order("input", **given)
        except KeeperGone:
            raise Unusable("the process has ended, so its input is closed") from None
        if "error" in answer:
            raise Unusable(answer["error"])
        return {"written": answer["written"]}

    async def _process_signal(self, args: ProcessSignalArguments) -> SignalResult:
        process = self._process(args.exec_id)
        try:
            answer = await process.order("signal", signal=signal.Signals[f"SIG{args.signal}"].value)
        except KeeperGone:
            return {"signaled": False}
        return {"signaled": answer["signaled"]}

    async def _process_list(self, _args: ProcessListArguments) -> ProcessesResult:
        processes: list[ListedProcess] = []
        for size in _COMMAND_SIZES:
            processes = [_listed(process, size) for process in self._processes]
            if len(json.dumps(processes, ensure_ascii=False).encode()) < LARGEST_BODY - PAGE // 8:
                break
        return {"processes": processes}

    def _process(self, exec_id: str) -> Process:
        process = self._processes.get(exec_id)
        if process is None:
            raise Unusable(f"there is no process {exec_id!r} in this workspace")
        return process

    def _exec_id(self, call_id: str) -> str:
        return exec_id_of(self._config.workspace_id, call_id)

    def _state(self, process: Process, after: int, limit: int) -> ProcessState:
        # Read first: what is there at the end of the process is complete.
        ended = process.ended
        piece = process.read(after, min(limit, PAGE))
        output = fitting(piece.data.decode())
        state: ProcessState = {
            "exec_id": process.exec_id,
            "status": "running",
            "output": output,
            "offset": piece.offset,
            "next": piece.offset + len(output.encode()),
        }
        if piece.dropped:
            state["dropped"] = piece.dropped
        _add_end(state, ended)
        return state

    # -- files ---------------------------------------------------------------------------------

    async def _read_file(self, args: ReadFileArguments) -> FileContent:
        return await asyncio.to_thread(self._files.read, args.path, args.offset, args.limit)

    async def _write_file(self, args: WriteFileArguments) -> FileWritten:
        return await asyncio.to_thread(
            self._files.write,
            args.path,
            _bytes(args.content, args.encoding),
            mode=None if args.mode is None else int(args.mode, 8),
            append=args.append,
            create_directories=args.create_directories,
        )

    async def _edit_file(self, args: EditFileArguments) -> FileEdited:
        return await asyncio.to_thread(self._files.edit, args.path, args.edits)

    async def _list_files(self, args: ListFilesArguments) -> FilesResult:
        return await asyncio.to_thread(
            self._files.list, args.path or _HERE, args.depth, hidden=args.hidden, after=args.after
        )

    # -- the rest ------------------------------------------------------------------------------

    def _publish(self, process: Process) -> None:
        self._run(ExecStream(self._config, process, self._publish_many))

    def _run(self, stream: ExecStream) -> None:
        def is_complete(_: asyncio.Task[None]) -> None:
            del self._streams[stream]
            self._complete.append((clock(), stream))

        self._streams[stream] = asyncio.create_task(stream.run())
        self._streams[stream].add_done_callback(is_complete)

    def _compare_server(self, bus: Bus) -> None:
        """After a restart of NATS, publish again what its end may have taken."""
        before, self._server_id = self._server_id, bus.server_id
        if before in ("", bus.server_id):
            return
        lately = [stream for at, stream in self._complete if at > clock() - _PUBLISHED_AGAIN_WITHIN]
        self._complete.clear()
        for stream in (*self._streams, *lately):
            stream.publish_again()
        for stream in lately:
            self._run(stream)

    def _is_of_this_build(self, agent_id: str) -> bool:
        """Return whether this may be another agent of the same build, whose processes are its own."""
        return (self._agents / agent_id).exists()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_LOST: Final = {
    "status": "exited",
    "reason": "lost",
    "output": "",
    "offset": 0,
    "next": 0,
}
"""The end that the agent reports of a process of which nothing is left."""


def _started(exec_id: str) -> ExecAnswer:
    return _answer({"exec_id": exec_id})


def _answer(result: Any) -> ExecAnswer:
    return {"is_error": False, "result": result}


def _add_end(how: HowItEnded, ended: Ended | None) -> None:
    if ended is None:
        return
    how["status"] = "exited"
    if ended.exit_code is not None:
        how["exit_code"] = ended.exit_code
    if ended.signal is not None:
        how["signal"] = ended.signal
    if ended.reason is not None:
        how["reason"] = ended.reason


def _listed(process: Process, size: int) -> ListedProcess:
    note, ended = process.note, process.ended
    listed: ListedProcess = {
        "exec_id": note.exec_id,
        "command": note.command[:size],
        "status": "running",
        "started_at": _moment(note.started_at),
    }
    if ended is not None:
        listed["ended_at"] = _moment(ended.ended_at)
    _add_end(listed, ended)
    return listed


def _moment(seconds: float) -> str:
    return timestamp(datetime.fromtimestamp(seconds, UTC))


def _wait(args: Any) -> float:
    return min(float(args.wait_seconds), LONGEST_WAIT)


def _bytes(text: str, encoding: str | None) -> bytes:
    """Return the bytes that an argument stands for. Raises Unusable."""
    try:
        return base64.b64decode(text, validate=True) if encoding == "base64" else text.encode()
    except binascii.Error:
        raise Unusable("it is not base64") from None
    except UnicodeEncodeError:
        raise Unusable("half a character (a lone surrogate) can't be written") from None


def _encoded(answer: ExecAnswer) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode(errors="replace")
