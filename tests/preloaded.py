"""Runs commands of `workspaced` in processes forked from one that has already imported everything.

Imports take most of the time of a short command, and tests run hundreds of commands. Each command
is still a separate process, with its own standard streams, exit status and event loop.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import BinaryIO

ROOT = Path(__file__).parents[1]
_lock = threading.Lock()
_started: dict[tuple[int, tuple[str, ...]], socket.socket] = {}
"""The connection to the forking process, by the pid of the process that started it and the prefix."""
_MAX_COMMAND_LINE = 4096
"""Room for the command line of a command, which replaces that of the forking process."""


class Started:
    """A process that was started here, with the interface of `subprocess.Popen`."""

    def __init__(
        self, args: Sequence[str], answers: socket.socket, stdout: BinaryIO, stderr: BinaryIO
    ) -> None:
        self.args, self._answers = list(args), answers
        self.stdout, self.stderr = stdout, stderr
        self._ending = threading.Lock()
        self.pid = int(self._line())
        self.returncode: int | None = None

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            more = self._answers.recv(1)
            if not more:
                raise EOFError("the process that starts commands has ended")
            line += more
        return line

    def poll(self) -> int | None:
        """Return the exit status if the process has ended."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def _end(self) -> None:
        with self._ending:  # threads may wait side by side
            if self.returncode is None:
                self.returncode = int(self._line())
                self._answers.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    words: Sequence[str],
    environ: Mapping[str, str],
    stdin: int,
    prefix: Sequence[str] = (),
) -> Started:
    """Start `workspaced` with these arguments, this environment and this descriptor as stdin.

    `prefix`: a program that starts the process which forks the commands, with arguments.
    """
    ours, theirs = socket.socketpair()
    (read_out, write_out), (read_err, write_err) = os.pipe(), os.pipe()
    request = json.dumps({"words": list(words), "environ": dict(environ)}).encode()
    with theirs, _lock:
        descriptors = [theirs.fileno(), stdin, write_out, write_err]
        head = len(request).to_bytes(4, "big")
        socket.send_fds(_control(tuple(prefix)), [head + request], descriptors)
    for descriptor in (write_out, write_err):
        os.close(descriptor)
    return Started(words, ours, os.fdopen(read_out, "rb"), os.fdopen(read_err, "rb"))


def run(
    words: Sequence[str],
    environ: Mapping[str, str],
    stdin: str,
    patience: float,
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run `workspaced` with these arguments and this environment until it ends.

    Kills the command after `patience` seconds, and raises subprocess.TimeoutExpired.
    """
    read_in, write_in = os.pipe()
    with os.fdopen(write_in, "wb", buffering=0) as given:
        process = start(words, environ, read_in, prefix)
        os.close(read_in)
        taken: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=_read, args=(name, stream, taken), daemon=True)
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        for reader in readers:
            reader.start()
        timer = threading.Timer(patience, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        with suppress(BrokenPipeError):  # a command may end without reading its input
            given.write(stdin.encode())
            given.close()
        for reader in readers:
            reader.join()
        status = process.wait()
        late = not timer.is_alive() and status == -signal.SIGKILL
        timer.cancel()
    if late:
        raise subprocess.TimeoutExpired(list(words), patience, taken["stdout"], taken["stderr"])
    said, complained = (taken[name].decode() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(list(words), status, said, complained)


def _read(name: str, stream: BinaryIO, taken: dict[str, bytes]) -> None:
    with stream:
        taken[name] = stream.read()


def _control(prefix: tuple[str, ...]) -> socket.socket:
    """Return the connection to the forking process; the first use starts that process."""
    key = (os.getpid(), prefix)
    if key not in _started:
        ours, theirs = socket.socketpair()
        with theirs:
            program = [*prefix, sys.executable, "-m", "tests.preloaded", str(theirs.fileno())]
            process = subprocess.Popen(
                [*program, " " * _MAX_COMMAND_LINE],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        _started[key] = ours
        atexit.register(_stop, ours, process)
    return _started[key]


def _stop(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.wait()


def _serve(control: socket.socket) -> None:
    """Fork a process for each request until the connection ends."""
    for package in (
        "statemachine",
        "bus",
        "handlers.cli",
        "handlers.access",
        "handlers.publishing",
    ):
        for module in walk_packages(import_module(package).__path__, f"{package}."):
            import_module(module.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaps the forked processes automatically
    while True:
        head, descriptors, _, _ = socket.recv_fds(control, 4, 4)
        if not head:
            return
        request, length = b"", int.from_bytes(head, "big")
        while len(request) < length:  # only this request: the next one may already follow
            request += control.recv(length - len(request))
        if not os.fork():
            control.close()
            _supervise(json.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(request: dict[str, object], answer: int, *streams: int) -> None:
    """Fork the command; report its pid and, when it has ended, its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        os.close(answer)
        _command(request, streams)
    for descriptor in streams:
        os.close(descriptor)
    os.write(answer, b"%d\n" % pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(answer, b"%d\n" % status)
    os._exit(0)


def _command(request: dict[str, object], streams: Sequence[int]) -> None:
    """Run the command in this process, in the same way as `python -m handlers`."""
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace")
    os.environ.clear()
    os.environ.update(request["environ"])  # type: ignore[call-overload]
    sys.argv = ["workspaced", *request["words"]]  # type: ignore[misc]
    _set_command_line([sys.executable, "-m", "handlers", *request["words"]])  # type: ignore[misc]
    status: object = 1
    try:
        status = import_module("handlers.cli").main()
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            sys.stderr.write(f"{status}\n")
            status = 1
    except BaseException:  # noqa: BLE001 — as the interpreter does
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
    os._exit(int(str(status or 0)))


def _set_command_line(words: Sequence[str]) -> None:
    """Replace what /proc shows as the arguments of this process, by which tests find it."""
    numbers = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = int(numbers[45]), int(numbers[46])
    text = b"".join(os.fsencode(word) + b"\0" for word in words)
    if begin:  # 0 where the system hides it
        ctypes.memmove(begin, text[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
