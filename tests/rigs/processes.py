"""Processes of workspaced as a user starts them, known by their data directory only."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.embedded.database_access import complete_url
from handlers.sandbox import confined_exec
from tests import preloaded
from tests.rigs.servers import give_database

ROOT = Path(__file__).parents[2]
TIMEOUT = 30.0
"""Seconds after which a wait for a process fails the test."""


OF_THE_INTERPRETER = ("PYTHON", "LANG", "LC_", "LD_", "TZ")
"""Variables that act when Python starts: a command that is given one of these starts its own."""


def is_preloadable(env: Mapping[str, str] | None) -> bool:
    """Return whether none of the variables acts when Python starts."""
    return not any(name.startswith(OF_THE_INTERPRETER) for name in env or ())


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment without variables of workspaced, and `more`.

    Bubblewrap gives builds a /tmp of their own, without the pipes of tests; where it is installed, the next
    mechanism is taken instead.
    """
    plain = {key: value for key, value in os.environ.items() if not key.startswith("WORKSPACED_")}
    if shutil.which("bwrap"):
        usable = confined_exec.is_landlock_usable()
        plain["WORKSPACED_CONFINEMENT"] = "landlock" if usable else "rlimits"
    return {**plain, **(more or {})}


def run(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    patience: float = TIMEOUT,
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `prefix` is a program that runs it, with arguments."""
    if is_preloadable(env):
        return preloaded.run([*map(str, words)], environment(env), stdin or "", patience, prefix)
    return subprocess.run(
        [*prefix, sys.executable, "-m", "handlers", *map(str, words)],
        cwd=ROOT,
        env=environment(env),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )


class Process:
    """A running command; a thread collects what it writes to stderr."""

    def __init__(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        """`program`: what to run in place of the module."""
        self.process: subprocess.Popen[bytes] | preloaded.Started
        if program is None and is_preloadable(env):
            with Path(os.devnull).open("rb") as nothing:
                self.process = preloaded.start(
                    [*map(str, words)], environment(env), nothing.fileno()
                )
        else:
            main = ["-m", "handlers"] if program is None else [str(program)]
            self.process = subprocess.Popen(
                [sys.executable, *main, *map(str, words)],
                cwd=ROOT,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        self.rest = b""
        """The rest of stdout, read when the process ended."""
        self._said: list[str] = []
        self._closed = False
        self._more = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                with self._more:
                    self._said.append(line.decode(errors="replace"))
                    self._more.notify_all()
        with self._more:
            self._closed = True
            self._more.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> bytes:
        """Wait for the next line of stdout; empty at its end."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        assert readable, f"nothing on stdout; stderr:\n{self.output()}"
        return self.process.stdout.readline()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, within: float = TIMEOUT) -> int:
        """Send a signal if the process runs; return its exit status."""
        if self.process.poll() is None:
            self.send(number)
        return self.ended(within)

    def ended(self, within: float = TIMEOUT) -> int:
        """Wait for the end of the process; return its exit status."""
        try:
            return self.process.wait(within)
        finally:
            assert self.process.stdout is not None
            if self.process.returncode is not None and not self.process.stdout.closed:
                self.rest = self.process.stdout.read()
                self.process.stdout.close()
                self._listener.join(TIMEOUT)

    def kill(self) -> None:
        """Kill the process if it still runs."""
        if self.process.returncode is None:
            self.process.kill()
            self.ended()

    def output(self) -> str:
        """Return what the process has written to stderr so far."""
        with self._more:
            return "".join(self._said)

    def wait_for_output(self, words: str, times: int = 1, *, timeout: float = TIMEOUT) -> None:
        """Wait until that many lines of stderr have contained `words`; fails if the process ends."""

        def count() -> int:
            return sum(words in line for line in self._said)

        with self._more:
            self._more.wait_for(lambda: self._closed or count() >= times, timeout)
            assert count() >= times, f"no {words!r} in:\n{self.output()}"


@dataclass
class Up:
    """A running `workspaced up`."""

    directory: Path
    process: Process
    ready: dict[str, Any]

    @property
    def nats(self) -> str:
        return str(self.ready["nats"])

    @property
    def http(self) -> str:
        return str(self.ready["http"])

    @property
    def database(self) -> str:
        """The URL of the ready line with the password, which that line does not have."""
        return complete_url(str(self.ready["database"]), self.directory / "credentials")

    @property
    def addresses(self) -> dict[str, Any]:
        """The ready line without the link to the page, whose code is always another one."""
        return {name: value for name, value in self.ready.items() if name != "page"}

    def seed_file(self, role: str) -> Path:
        return self.directory / "credentials" / f"{role}.nk"

    def run(self, *words: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run another command with the same data directory."""
        return run(*words, "--data-dir", self.directory, stdin=stdin)

    def data(self, *words: str | Path) -> Any:
        """Run another command, which must succeed; return the JSON that it prints."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def start_up(
    directory: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    empty: bool = False,
) -> Up:
    """Start `up` and wait until it is ready.

    A new data directory gets a copy of a database, unless it has to be `empty` for a test of the first start.
    """
    if not empty and "WORKSPACED_DATABASE_URL" not in (env or {}):
        give_database(directory)
    process = Process("up", "--data-dir", directory, *flags, env=env)
    try:
        line = process.line()
        assert line, f"`up` ended before it was ready:\n{process.output()}"
        return Up(directory, process, json.loads(line))
    except BaseException:
        process.kill()
        raise


@contextmanager
def up(
    directory: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    empty: bool = False,
) -> Iterator[Up]:
    """Run `start_up`; at the end, kill everything that uses its data directory."""
    try:
        running = start_up(directory, *flags, env=env, empty=empty)
        try:
            yield running
        finally:
            running.process.stop()
    finally:
        kill_processes(processes_using(directory))


def get_json(url: str) -> tuple[int, Any]:
    """Return the status and the JSON of an HTTP answer, also of a refusal."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def processes_using(directory: Path, *words: str) -> list[int]:
    """Return the pids of processes whose command line contains the directory and all of `words`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                line = os.fsdecode((entry / "cmdline").read_bytes())
                if str(directory) in line and all(word in line for word in words):
                    found.append(int(entry.name))
    return found


def agents_using(directory: Path) -> list[int]:
    """Return the agents of a data directory, without the programs that confine them.

    Those have the agent's command line at the end of their own.
    """
    agents = []
    for pid in processes_using(directory, "handlers.agent"):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            before, _, module = " ".join(words[1:]).partition("-m ")
            python = "python" in Path(words[0]).name
            options = all(word.startswith("-") for word in before.split())
            if python and options and module.startswith("handlers.agent"):
                agents.append(pid)
    return agents


def wait_until_gone(pids: Sequence[int], within: float) -> bool:
    """Wait until all of these processes have ended; return whether they have."""
    deadline = time.monotonic() + within
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                left = max(0.0, deadline - time.monotonic())
                if not select.select([descriptor], [], [], left)[0]:
                    return False
            finally:
                os.close(descriptor)
    return True


def kill_processes(pids: Sequence[int]) -> None:
    """Kill these processes and wait for their end."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(pids, TIMEOUT)


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 / 1024
