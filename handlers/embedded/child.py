"""One server as a child process: started, awaited, stopped, and never left behind."""

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
from handlers.embedded.full_disk import StoreWatch
from handlers.embedded.inotify import changes
from handlers.errors import ServerFailed

_STOP_LIMIT: Final = 3.0
_LOG_KEPT: Final = 10 * 1024 * 1024
_TAIL: Final = 2_000

_KEPT_BACK: Final = ("WORKSPACED_", "PG", "NATS_", "GO", "OPENSSL_", "SSL_")
"""How variables begin that tell workspaced, PostgreSQL, nats-server, Go or OpenSSL something."""

T = TypeVar("T")


class Child:
    """A running server that dies with this process."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        log: Path,
        farewell: signal.Signals,
        again: Callable[[], Awaitable[asyncio.subprocess.Process]],
    ) -> None:
        self.name, self._process, self._log, self._farewell = name, process, log, farewell
        self._again = again
        self.watch: StoreWatch | None = None
        """Tells whether the server can store what it is given, where somebody looks after that."""
        self.needs: tuple[Path, ...] = ()
        """Files and directories that clients can't reach it without, or that it can't do without."""
        self._restarting = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self, directory: Path, look: Callable[[], T | None], limit: float) -> T:
        """Return what `look` finds, tried at each change in `directory`.

        Raises ServerFailed when the server ends first or takes longer than `limit` seconds.
        """
        ended = asyncio.ensure_future(self._process.wait())
        try:
            with changes(directory) as changed:
                async with asyncio.timeout(limit):
                    while (found := look()) is None:
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
        """Wait until the server ends, and say so: nobody but `stop` and `restart` should end it."""
        while True:
            process = self._process
            status = await process.wait()
            async with self._restarting:
                if process is self._process:
                    return self._failed(f"ended with status {status}")

    async def restart(self) -> None:
        """End the server and start it again, with the same command line; it is not ready then."""
        async with self._restarting:
            await self.stop()
            self._process = await self._again()

    async def stop(self) -> None:
        """End it in its own gentle way, and by force when that takes too long."""
        with suppress(ProcessLookupError):
            self._process.send_signal(self._farewell)
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_LIMIT)
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
    farewell: signal.Signals,
    identity: Sequence[str] = (),
) -> Child:
    """Start a server that writes its own log, and gets `farewell` when this process is gone.

    Call it from a thread that lives as long as the process (the main one): the kernel takes the
    end of the starting thread for the parent's.
    """

    async def begin() -> asyncio.subprocess.Process:
        _turn_over(log)
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *launched(command, farewell=farewell, identity=identity),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                # A terminal's Ctrl-C is for us; the servers end after those who use them.
                start_new_session=True,
            )

    return Child(name, await begin(), log, farewell, begin)


def launched(
    command: Sequence[str | Path], *, farewell: signal.Signals, identity: Sequence[str]
) -> list[str]:
    """Return the command line that runs `command` by way of `launch`."""
    python = [sys.executable, "-I", "-S", launch.__file__]
    return [*python, str(os.getpid()), str(int(farewell)), *identity, *map(str, command)]


def environment() -> dict[str, str]:
    """Return our environment for a server, without what would configure it in our place.

    Our own variables may also hold the password of another server.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_BACK)}


async def _either(ended: asyncio.Future[int], changed: asyncio.Event) -> None:
    woken = asyncio.ensure_future(changed.wait())
    either: tuple[asyncio.Future[Any], ...] = (ended, woken)
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        woken.cancel()


def _turn_over(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_KEPT:
            log.replace(log.with_name(log.name + ".1"))
