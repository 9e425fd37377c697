"""Runs a server as a child process: start, wait until it is ready, restart, stop.

A child never outlives this process for long: the kernel signals it when this process ends. The next owner of
the data directory waits for such a child (`wait_for_stale`) before it starts its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from handlers.embedded import launch
from handlers.embedded.disk_space import FullDiskMonitor
from handlers.embedded.inotify import changes
from handlers.errors import ServerFailed
from handlers.publishing.atomic_files import rotate
from handlers.sandbox.processes import hold_process, wait_for_exit

_STOP_TIMEOUT: Final = 3.0
_STALE_TIMEOUT: Final = 10.0
_LOG_KEPT: Final = 10 * 1024 * 1024
_TAIL: Final = 2_000

_HIDDEN_PREFIXES: Final = ("WORKSPACED_", "PG", "NATS_", "GO", "OPENSSL_", "SSL_")
"""Prefixes of environment variables that would configure workspaced or a server."""

T = TypeVar("T")


class Child:
    """A running server, which the kernel ends when this process ends."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        log: Path,
        stop_signal: signal.Signals,
        spawn: Callable[[], Awaitable[asyncio.subprocess.Process]],
    ) -> None:
        self.name, self._process, self._log, self._stop_signal = name, process, log, stop_signal
        self._spawn = spawn
        self.monitor: FullDiskMonitor | None = None
        """Reports whether the server can write to its disk; None if nothing monitors that."""
        self.needs: tuple[Path, ...] = ()
        """Files and directories without which the server does not work or clients cannot reach it."""
        self._restarting = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    async def wait_until_ready(
        self, directory: Path, check: Callable[[], T | None], limit: float
    ) -> T:
        """Call `check` after each change in `directory` until it returns a value, and return that.

        Raises ServerFailed if the server ends first, or after `limit` seconds.
        """
        ended = asyncio.ensure_future(self._process.wait())
        try:
            with changes(directory) as changed:
                async with asyncio.timeout(limit):
                    while (found := check()) is None:
                        await _either(ended, changed)
                        changed.clear()
                        if ended.done():
                            raise self._failed(f"ended with status {ended.result()}")
                    return found
        except TimeoutError:
            raise self._failed(f"was not ready after {limit:g} s") from None
        finally:
            ended.cancel()

    async def ended(self) -> ServerFailed:
        """Wait until the server ends other than by `stop` or `restart`, and return the error."""
        while True:
            process = self._process
            status = await process.wait()
            async with self._restarting:
                if process is self._process:
                    return self._failed(f"ended with status {status}")

    async def restart(self) -> None:
        """Stop the server and start it again. It may not be ready yet when this returns."""
        async with self._restarting:
            await self.stop()
            self._process = await self._spawn()

    async def stop(self) -> None:
        """Stop the server with its stop signal, and kill it after a timeout."""
        with suppress(ProcessLookupError):
            self._process.send_signal(self._stop_signal)
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT)
            except TimeoutError:
                self._process.kill()
        await self._process.wait()

    def _failed(self, what: str) -> ServerFailed:
        with suppress(OSError):
            end = self._log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
            return ServerFailed(f"{self.name} {what}; {self._log} ends with:\n{end}")
        return ServerFailed(f"{self.name} {what}; see {self._log}")


async def start(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    stop_signal: signal.Signals,
    run_as: Sequence[str] = (),
) -> Child:
    """Start a server. The kernel sends it `stop_signal` when this process ends.

    `run_as`: options of `launch`. Call this from the main thread: for the kernel, the parent of a process is
    the thread that started it, so the signal would be sent as soon as that thread ends.
    """

    async def spawn() -> asyncio.subprocess.Process:
        rotate(log, _LOG_KEPT)
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *launch_command(command, stop_signal=stop_signal, run_as=run_as),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                # Ctrl-C in a terminal must not end the servers before their clients.
                start_new_session=True,
            )

    return Child(name, await spawn(), log, stop_signal, spawn)


def launch_command(
    command: Sequence[str | Path], *, stop_signal: signal.Signals, run_as: Sequence[str]
) -> list[str]:
    """Return the command line that runs `command` through `launch`."""
    python = [sys.executable, "-I", "-S", launch.__file__]
    return [*python, str(os.getpid()), str(int(stop_signal)), *run_as, *map(str, command)]


def environment() -> dict[str, str]:
    """Return the environment for a server, without variables that would change its configuration.

    workspaced's own variables are left out too, because they may contain a password.
    """
    return {
        name: value for name, value in os.environ.items() if not name.startswith(_HIDDEN_PREFIXES)
    }


async def _either(ended: asyncio.Future[int], changed: asyncio.Event) -> None:
    woken = asyncio.ensure_future(changed.wait())
    either: tuple[asyncio.Future[Any], ...] = (ended, woken)
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        woken.cancel()


def read_pid_file(pid_file: Path, mark: Path) -> tuple[int | None, bool]:
    """Return the process id in a pid file, and whether that process is the server that wrote it.

    `mark`: a path in the server's command line. After a reboot another program may have the same id.
    """
    try:
        pid = int(pid_file.read_bytes().split(maxsplit=1)[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return None, False
    return pid, os.fsencode(mark) in command.split(b"\0")


async def wait_for_stale(pid_file: Path, mark: Path) -> None:
    """Wait until a server of an earlier owner has ended, and kill it after a timeout."""
    pid, same = read_pid_file(pid_file, mark)
    if pid is None or not same:
        return
    with suppress(ProcessLookupError), hold_process(pid) as process:
        if not read_pid_file(pid_file, mark)[1]:
            return
        try:
            await asyncio.wait_for(wait_for_exit(process), _STALE_TIMEOUT)
        except TimeoutError:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            await wait_for_exit(process)
