"""The program that starts the commands of `execute` and keeps each of them running.

    python -I process_keeper.py DESCRIPTOR

The agent starts this program once and passes it the sensitive values as JSON on standard input. DESCRIPTOR is a
SOCK_SEQPACKET socket on which the agent sends one end of a new stream socket for each command. For each, this
program forks a *keeper*: a copy of itself that starts the command in a session of its own, and stays until no
descendant of the command is left. The fork is cheap, and the mask for the sensitive values is built only once.
The program ends with the agent, its keepers do not.

The stream socket carries the request (4 bytes of length, big-endian, then JSON), and after that one JSON object
a line in both directions. The keeper also listens on `socket` in the process's folder, for the agent's next
process. It reports `{"size", "ended", "input"}` when one of these has changed: bytes of output, how the command
ended (or null), and whether its input is open. An order has an `id`, which its answer carries too:

    {"id", "order": "signal", "signal"}                     {"id", "signaled"}
    {"id", "order": "input", "data"?, "close"?, "size"?}    {"id", "written"} or {"id", "error"}
    {"id", "order": "stop"}                                 {"id"}

The folder contains `lock`, which is held as long as the keeper runs, `output` (`kept_output`), and in the end
`ended`. Everything that is written there is masked.
"""

from __future__ import annotations

import base64
import codecs
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

if __name__ == "__main__":  # -I leaves out the directory from which the agent imports its modules
    sys.path.insert(0, str(Path(__file__).parents[2]))

from handlers.agent.kept_output import OutputWriter
from handlers.sandbox.keeper import reap
from statemachine.mask import Mask, MaskedStream

LENGTH: Final = struct.Struct(">I")
SOCKET, LOCK, OUTPUT, ENDED = "socket", "lock", "output", "ended"
KILL_AFTER: Final = 10.0
"""Seconds between SIGTERM and SIGKILL for a process that ran out of time or is stopped."""

_PR_SET_CHILD_SUBREAPER: Final = 36
_PIECE: Final = 65_536
_PIPE_SIZE: Final = 1024 * 1024
_INPUT_SIZE: Final = 65_536
"""Bytes of input that wait for the command at most, beside those that it was started with."""
_ROOM_TIMEOUT: Final = 5.0
"""Seconds that an order of input waits for room before its answer is that nothing was taken."""
_BACKLOG: Final = 8
_END_OF_FILE: Final = b"\x04"
"""What a terminal takes for the end of the input (Ctrl-D)."""
_MESSAGE_SIZE: Final = 4096
_LONGEST_WAIT: Final = 1e9
"""The milliseconds after which the loop looks at its limits again: `poll` takes no larger numbers."""


def main() -> None:
    """Fork a keeper for each socket that arrives, until the agent ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    mask = Mask(json.load(sys.stdin))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the keepers
    gc.freeze()
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        os.set_inheritable(descriptors[0], False)  # `recv_fds` ignores MSG_CMSG_CLOEXEC
        # If the fork fails, the connection is closed, and the agent reports that.
        with socket.socket(fileno=descriptors[0]) as connection, suppress(OSError):
            if os.fork() == 0:
                control.close()
                _keep(connection, mask)


def _keep(connection: socket.socket, mask: Mask) -> NoReturn:
    try:
        request = _read_request(connection)
        if request is not None:
            Keeper(connection, mask, request).run()
    finally:
        os._exit(0)


def _read_request(connection: socket.socket) -> dict[str, Any] | None:
    """Return the request; None if the agent ended while it wrote it."""
    with connection.makefile("rb", buffering=0) as reading:
        head = _exactly(reading.read, LENGTH.size)
        body = _exactly(reading.read, LENGTH.unpack(head)[0]) if head else b""
    return json.loads(body) if body else None


def _exactly(read: Callable[[int], bytes | None], size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = read(size - len(data))
        if not more:
            return b""
        data += more
    return data


class _Connection:
    """A connection of the agent: lines of JSON that arrived and that wait to be sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.sending, self._received = connection, b"", b""
        self.outdated = True
        """Whether the agent has to be told of a change."""
        connection.setblocking(False)

    def lines(self) -> Iterator[dict[str, Any]] | None:
        """Return the objects that have arrived; None if the agent has closed the connection."""
        try:
            data = self.socket.recv(4 * _PIECE)
        except BlockingIOError:
            return iter(())
        except OSError:
            return None
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        return map(json.loads, lines)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an object as soon as the agent reads."""
        self.sending += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes."""
        with suppress(OSError):  # the end of the connection is noticed when it is read
            while self.sending:
                self.sending = self.sending[self.socket.send(self.sending) :]


class _Input:
    """The standard input of the command: a pipe or a terminal, and what waits to be written to it."""

    def __init__(self, descriptor: int, *, terminal: bool) -> None:
        self.descriptor, self._terminal = descriptor, terminal
        self.pending = bytearray()
        self.open = descriptor >= 0
        """Whether the agent may add input."""
        self._last = b"\n"

    def add(self, data: bytes, *, close: bool, limit: int = _INPUT_SIZE) -> int:
        """Add input and return how many bytes of it were taken; `close` acts when all of them are."""
        taken = data[: max(0, limit - len(self.pending))]
        self.pending += taken
        self._last = taken[-1:] or self._last
        if close and len(taken) == len(data):
            self.open = False
            if self._terminal:  # a line that is not complete takes one to be read, and one to end
                self.pending += _END_OF_FILE * (1 if self._last == b"\n" else 2)
        self.write()
        return len(taken)

    def write(self) -> None:
        """Write as much as the command takes, and close a pipe that is complete."""
        try:
            while self.pending:
                del self.pending[: os.write(self.descriptor, self.pending[:_PIECE])]
        except BlockingIOError:
            return
        except OSError:
            self.close()
        if not (self.open or self._terminal):
            self.close()

    def close(self) -> None:
        """Close it; the command reads the end of its input."""
        self.open = False
        self.pending.clear()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Keeper:
    """A command and all processes that descend from it."""

    def __init__(self, connection: socket.socket, mask: Mask, request: Mapping[str, Any]) -> None:
        self._request = request
        self._connections = [_Connection(connection)]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._masked = MaskedStream(mask) if mask.values else None
        self._release_at: float | None = None
        self._ended: dict[str, Any] | None = None
        self._reason: str | None = None
        self._kill_at: float | None = None
        self._killing = False
        self._everything = False
        """Whether all descendants are ended, and not only the command's process group."""
        self._waiting: deque[tuple[float, _Connection, dict[str, Any]]] = deque()
        """Orders of input that wait for room, and until when."""
        timeout = request["timeout_seconds"]
        self._timeout_at = _now() + timeout if timeout else None

    def run(self) -> None:
        """Start the command, and serve it until no descendant is left."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._folder = os.open(self._request["folder"], os.O_RDONLY | os.O_DIRECTORY)
        lock = self._open(LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # the agent's next process takes this command for lost
        if self._exists(ENDED):
            return
        self._writer = OutputWriter(self._open(OUTPUT, os.O_RDWR | os.O_CREAT))
        self._listen()
        self._signals, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._terminating = False
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_terminating", True))
        for ignored in (signal.SIGHUP, signal.SIGINT):
            signal.signal(ignored, signal.SIG_IGN)
        try:
            error = self._start()
        except OSError as failed:
            error = f"the process can't be started: {failed.strerror or failed}"
        if error:
            self._connections[0].send({"error": error})
            return
        self._connections[0].send({"started": self._command})
        os.chdir("/")  # so that the command's directory can be unmounted
        self._serve()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        # By the descriptor: the folder's path may be longer than the address of a socket can be.
        self._listener.bind(f"/proc/self/fd/{self._folder}/{SOCKET}")
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)

    def _start(self) -> str:
        """Start the command; return why it can't be started, or "" if it is running."""
        request, size = self._request, self._request["pty"]
        given = base64.b64decode(request["stdin"] or "")
        self._master = -1
        if size:
            self._master, reading = os.openpty()
            writing, self._output = reading, self._master
            self._resize(size)
            self._input = _Input(os.dup(self._master), terminal=True)
        else:
            self._output, writing = os.pipe()
            if given or request["open_stdin"]:
                reading, stdin = os.pipe()
            else:
                reading, stdin = os.open(os.devnull, os.O_RDONLY), -1
            self._input = _Input(stdin, terminal=False)
        told, telling = os.pipe()
        self._command = os.fork()
        if not self._command:
            _become(request, reading, writing, telling)
        for descriptor in {reading, writing, telling}:
            os.close(descriptor)
        with open(told, "rb") as file:  # noqa: PTH123 — a descriptor
            error = file.read().decode(errors="replace")
        if error:
            return error
        for descriptor in (self._output, self._input.descriptor):
            if descriptor >= 0:
                os.set_blocking(descriptor, False)
        if self._input.open:
            stays_open = bool(size or request["open_stdin"])
            self._input.add(given, close=not stays_open, limit=len(given))
        return ""

    # -- the loop ------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._reap()
        left = True
        while left:
            self._tell()
            poll = select.poll()
            for descriptor, events in self._watched().items():
                poll.register(descriptor, events)
            ready = dict(poll.poll(self._wait_milliseconds()))
            self._on_ready(ready)
            if self._terminating:
                self._terminating = False
                self._stop()
            left = self._reap()
            self._on_time()
            if self._killing and left:  # a process may have forked while the others were killed
                self._send_signal(signal.SIGKILL, everything=self._everything)
        self._read_what_is_there()
        self._take(b"", final=True)
        self._tell()
        with suppress(OSError):
            os.unlink(SOCKET, dir_fd=self._folder)

    def _on_ready(self, ready: Mapping[int, int]) -> None:
        if self._signals in ready:
            os.read(self._signals, _PIECE)
        if self._output in ready and not self._read():
            os.close(self._output)
            self._output = -1
        if self._input.descriptor in ready:
            self._on_input(ready[self._input.descriptor])
        if self._listener.fileno() in ready:
            self._accept()
        for connection in list(self._connections):
            if connection.socket.fileno() in ready:
                self._on_connection(connection)

    def _watched(self) -> dict[int, int]:
        watched = {self._signals: select.POLLIN, self._listener.fileno(): select.POLLIN}
        if self._output >= 0:
            watched[self._output] = select.POLLIN
        waits = bool(self._input.pending)
        if self._input.descriptor >= 0 and (waits or self._master < 0):
            # Without events, a pipe still reports that the command has closed its input.
            watched[self._input.descriptor] = select.POLLOUT if waits else 0
        for connection in self._connections:
            sends = select.POLLOUT if connection.sending else 0
            watched[connection.socket.fileno()] = select.POLLIN | sends
        return watched

    def _wait_milliseconds(self) -> float | None:
        times = [self._timeout_at, self._kill_at, self._release_at]
        times += [until for until, _, _ in self._waiting]
        due = [at for at in times if at is not None]
        return min(max(0.0, (min(due) - _now()) * 1000 + 1), _LONGEST_WAIT) if due else None

    def _on_time(self) -> None:
        now = _now()
        if self._timeout_at is not None and now >= self._timeout_at:
            self._timeout_at = None
            self._end("timeout")
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at, self._killing = None, True
        if self._release_at is not None and now >= self._release_at and self._masked is not None:
            self._store(self._masked.release())
        while self._waiting and (self._waiting[0][0] <= now or self._has_room()):
            _, connection, order = self._waiting.popleft()
            self._answer_input(connection, order)

    def _tell(self) -> None:
        for connection in self._connections:
            if connection.sending:
                connection.flush()
            if connection.outdated and not connection.sending:
                connection.outdated = False
                state = {
                    "size": self._writer.size,
                    "ended": self._ended,
                    "input": self._input.open and self._ended is None,
                }
                connection.send(state)

    def _changed(self) -> None:
        for connection in self._connections:
            connection.outdated = True

    # -- processes -----------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Reap processes that have ended; return whether any is left."""
        left, status = reap(self._command)
        if status is not None:
            self._read_what_is_there()
            self._take(b"", final=True)
            self._note_end(status)
        return left

    def _note_end(self, status: int) -> None:
        how = {"exit_code": status} if status >= 0 else {"signal": _signal_name(-status)}
        reason = {} if self._reason is None else {"reason": self._reason}
        self._ended = {**how, **reason, "ended_at": time.time(), "size": self._writer.size}
        self._timeout_at = None
        with suppress(OSError):  # the folder was removed, or the disk is full: the process is lost
            new = self._open(f".{ENDED}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(new, json.dumps(self._ended).encode())
            os.close(new)
            os.rename(f".{ENDED}", ENDED, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._changed()

    def _stop(self) -> None:
        self._everything = True
        self._end("stopped")

    def _end(self, reason: str) -> None:
        """End the process group: SIGTERM now, and SIGKILL later to what is left."""
        if self._ended is None and self._reason is None:
            self._reason = reason
        if self._send_signal(signal.SIGTERM, everything=self._everything):
            self._kill_at = _now() + KILL_AFTER

    def _send_signal(self, number: int, *, everything: bool = False) -> bool:
        """Signal what is left of the command's process group; return whether anything was."""
        self._reap()
        found = dict(_descendants(os.getpid()))
        members = [pid for pid, group in found.items() if group == self._command]
        with suppress(ProcessLookupError, PermissionError):
            if members:
                os.killpg(self._command, number)
        if everything:
            for pid in found.keys() - set(members):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        return bool(found if everything else members)

    # -- output --------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Take what was written; return whether there may be more."""
        try:
            data = os.read(self._output, _PIECE)
        except BlockingIOError:
            return True
        except OSError:  # no process has the terminal open any more
            return False
        if data:
            self._take(data)
        return bool(data)

    def _read_what_is_there(self) -> None:
        """Read as much as a pipe can hold: all that the command wrote before it ended."""
        for _ in range(_PIPE_SIZE // _PIECE):
            if self._output < 0 or not self._read():
                return

    def _take(self, data: bytes, *, final: bool = False) -> None:
        text = self._decoder.decode(data, final=final)
        if final:
            self._decoder.reset()
        if self._masked is not None:
            text = self._masked.feed(text)
            if final:
                text += self._masked.release()
        self._store(text)

    def _store(self, text: str) -> None:
        if text:
            # No space: the command must not fail because of its output.
            with suppress(OSError):
                self._writer.append(text.encode())
            self._changed()
        holds = self._masked is not None and self._masked.holds_little
        self._release_at = _now() + 1 if holds else None

    # -- the agent -----------------------------------------------------------------------------

    def _accept(self) -> None:
        with suppress(OSError):
            accepted, _ = self._listener.accept()
            self._connections.append(_Connection(accepted))

    def _on_connection(self, connection: _Connection) -> None:
        connection.flush()
        orders = connection.lines()
        if orders is None:
            self._connections.remove(connection)
            connection.socket.close()
            return
        for order in orders:
            self._obey(connection, order)

    def _obey(self, connection: _Connection, order: dict[str, Any]) -> None:
        number = order["id"]
        if order["order"] == "signal":
            signaled = self._send_signal(order["signal"])
            connection.send({"id": number, "signaled": signaled})
        elif order["order"] == "input":
            wants = bool(order.get("data")) and self._input.open
            if wants and not self._has_room():
                self._waiting.append((_now() + _ROOM_TIMEOUT, connection, order))
            else:
                self._answer_input(connection, order)
        else:
            connection.send({"id": number})
            self._stop()

    def _answer_input(self, connection: _Connection, order: Mapping[str, Any]) -> None:
        connection.send({"id": order["id"], **self._on_order_of_input(order)})

    def _on_order_of_input(self, order: Mapping[str, Any]) -> dict[str, Any]:
        size, close = order.get("size"), bool(order.get("close"))
        data = base64.b64decode(order.get("data") or "")
        if size and self._master < 0:
            return {"error": "the process has no terminal, so it has no size"}
        if (data or close) and (self._ended is not None or not self._input.open):
            return {"error": "the input of the process is closed"}
        if size:
            self._resize(size)
        if not (data or close):
            return {"written": 0}
        written = self._input.add(data, close=close)
        if not self._input.open:
            self._changed()
        return {"written": written}

    def _has_room(self) -> bool:
        return not self._input.open or len(self._input.pending) < _INPUT_SIZE

    def _on_input(self, events: int) -> None:
        if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            self._input.close()
            self._changed()
        else:
            self._input.write()

    def _resize(self, size: Mapping[str, int]) -> None:
        packed = fcntl.ioctl(self._master, termios.TIOCGWINSZ, bytes(8))
        rows, cols, _, _ = struct.unpack("HHHH", packed)
        given = struct.pack("HHHH", size.get("rows") or rows, size.get("cols") or cols, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, given)

    # -- files ---------------------------------------------------------------------------------

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._folder)

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def _become(request: Mapping[str, Any], reading: int, writing: int, telling: int) -> NoReturn:
    """Become the command; write to `telling` why that is impossible."""
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        os.setsid()
        if request["pty"]:
            fcntl.ioctl(reading, termios.TIOCSCTTY, 0)
        for standard, descriptor in enumerate((reading, writing, writing)):
            os.dup2(descriptor, standard)
        os.chdir(os.fsencode(request["cwd"]))
        command = ["/bin/sh", "-c", request["command"]]
        os.execve(command[0], command, request["env"])  # noqa: S606 — the command that was asked for
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(telling, f"the command can't be run: {reason}"[:_MESSAGE_SIZE].encode())
    finally:
        os._exit(126)


def _descendants(root: int) -> Iterator[tuple[int, int]]:
    """Yield the pid and the process group of each descendant that has not ended."""
    children: dict[int, list[tuple[int, int, bytes]]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 — pathlib would make an object of each
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                state, parent, group = file.read().rpartition(b") ")[2].split()[:3]
                children.setdefault(int(parent), []).append((int(name), int(group), state))
    rest = [root]
    while rest:
        for pid, its_group, its_state in children.get(rest.pop(), ()):
            rest.append(pid)
            if its_state not in (b"Z", b"X"):
                yield pid, its_group


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    main()
