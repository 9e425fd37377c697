"""Runs commands of `workspaced` in processes forked from one that has already imported everything.

Imports take most of the time of a short command, and tests run hundreds of commands. Each command
is still a separate process, with its own standard streams, exit status and event loop.
"""

from __future__ import annotations

import atexit
import json
import os
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

ROOT = Path(__file__).parents[1]
_lock = threading.Lock()
_started: dict[int, socket.socket] = {}
"""The connection to the forking process, by the pid of the process that started it."""


def run(
    words: Sequence[str], environ: Mapping[str, str], stdin: str, patience: float
) -> subprocess.CompletedProcess[str]:
    """Run `workspaced` with these arguments and this environment until it ends.

    Kills the command after `patience` seconds, and raises subprocess.TimeoutExpired.
    """
    ours, theirs = socket.socketpair()
    streams = [os.pipe() for _ in range(3)]
    (read_in, write_in), (read_out, write_out), (read_err, write_err) = streams
    request = json.dumps({"words": list(words), "environ": dict(environ)}).encode()
    given = os.fdopen(write_in, "wb", buffering=0)
    with ours, given:
        with theirs, _lock:
            descriptors = [theirs.fileno(), read_in, write_out, write_err]
            socket.send_fds(_control(), [len(request).to_bytes(4, "big") + request], descriptors)
        for descriptor in (read_in, write_out, write_err):
            os.close(descriptor)
        answers = ours.makefile("rb")
        pid = int(answers.readline())
        taken: dict[int, bytes] = {}
        readers = [
            threading.Thread(target=_read, args=(descriptor, taken), daemon=True)
            for descriptor in (read_out, read_err)
        ]
        for reader in readers:
            reader.start()
        timer = threading.Timer(patience, os.kill, (pid, signal.SIGKILL))
        timer.start()
        with suppress(BrokenPipeError):  # a command may end without reading its input
            given.write(stdin.encode())
            given.close()
        for reader in readers:
            reader.join()
        status = int(answers.readline())
        answers.close()
        late = not timer.is_alive() and status == -signal.SIGKILL
        timer.cancel()
    if late:
        raise subprocess.TimeoutExpired(list(words), patience, taken[read_out], taken[read_err])
    said, complained = (taken[descriptor].decode() for descriptor in (read_out, read_err))
    return subprocess.CompletedProcess(list(words), status, said, complained)


def _read(descriptor: int, taken: dict[int, bytes]) -> None:
    with os.fdopen(descriptor, "rb", closefd=True) as file:
        taken[descriptor] = file.read()


def _control() -> socket.socket:
    """Return the connection to the forking process; the first use starts that process."""
    if os.getpid() not in _started:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        _started[os.getpid()] = ours
        atexit.register(_stop, ours, process)
    return _started[os.getpid()]


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


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
