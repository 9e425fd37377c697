"""The embedded servers: data survives, a directory has one owner, and servers end with it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import nats
import pytest

from handlers.access.identities import seed_file
from handlers.embedded import (
    DataDirectoryInUse,
    EmbeddedError,
    Servers,
    embedded_servers,
    running_servers,
)
from handlers.errors import PortTaken
from tests.conftest import ConnectAs

ROOT = Path(__file__).parents[2]
OWNER = """
import asyncio, json, sys
from pathlib import Path
from handlers.embedded import EmbeddedError, embedded_servers

async def main():
    async with embedded_servers(Path(sys.argv[1])) as servers:
        pids = [child.pid for child in servers.children]
        print(json.dumps({"pids": pids, "nats": servers.nats_url}), flush=True)
        await asyncio.to_thread(sys.stdin.read)

try:
    asyncio.run(main())
except EmbeddedError as error:
    sys.exit(str(error))
"""


@contextmanager
def an_owner(
    directory: Path, *prefix: str, python: str = sys.executable, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """Run another process that owns the directory until its standard input is closed."""
    process = subprocess.Popen(
        [*prefix, python, "-c", OWNER, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    with process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def all_ended(pids: list[int], limit: float = 10) -> bool:
    """Return whether these processes, which are not children of this one, end within `limit`."""
    for pid in pids:
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        readable, _, _ = select.select([watched], [], [], limit)
        os.close(watched)
        if not readable:
            return False
    return True


async def operator(servers: Servers) -> nats.NATS:
    return await nats.connect(
        servers.nats_url, nkeys_seed=str(seed_file(servers.credentials, "operator"))
    )


async def test_the_data_survives_a_restart(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path / "data") as first:
        database = await asyncpg.connect(first.database_url)
        await database.execute("create table kept (word text); insert into kept values ('yes')")
        await database.close()
        bus = await operator(first)
        await bus.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await bus.jetstream().publish("kept", b"yes")
        await bus.close()

    async with embedded_servers(tmp_path / "data") as again:
        database = await asyncpg.connect(again.database_url)
        assert await database.fetchval("select word from kept") == "yes"
        await database.close()
        bus = await operator(again)
        assert (await bus.jetstream().get_last_msg("KEPT", "kept")).data == b"yes"
        await bus.close()

    assert (again.nats_url, again.websocket_url) == (first.nats_url, first.websocket_url)


async def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    with an_owner(tmp_path) as (process, _):
        with pytest.raises(DataDirectoryInUse, match=str(process.pid)) as refused:
            async with embedded_servers(tmp_path):
                pass
        assert refused.value.pid == process.pid
        noted = running_servers(tmp_path)
        assert noted is not None
        database = await asyncpg.connect(noted.database_url)
        assert await database.fetchval("select 1") == 1
        await database.close()

        _, _ = process.communicate(timeout=10)
        assert process.returncode == 0
    assert running_servers(tmp_path) is None


async def test_servers_end_with_a_killed_owner_and_the_next_owner_starts_at_once(
    tmp_path: Path,
) -> None:
    for _ in range(3):
        with an_owner(tmp_path) as (process, said):
            process.kill()
            process.wait()
            async with embedded_servers(tmp_path) as servers:
                database = await asyncpg.connect(servers.database_url)
                assert await database.fetchval("select 1") == 1
                await database.close()
            assert all_ended(said["pids"])
            assert servers.nats_url == said["nats"]


async def test_servers_of_a_killed_owner_end_by_themselves(tmp_path: Path) -> None:
    with an_owner(tmp_path) as (process, said):
        process.kill()
        assert all_ended(said["pids"])
    async with embedded_servers(tmp_path):
        pass  # removes temporary files of the killed one


async def test_stale_pid_files_with_ids_of_other_programs_are_harmless(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path):
        running = (tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()
    somebody = str(os.getppid())
    (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join([somebody, *running[1:], ""]))
    (tmp_path / "nats" / "nats.pid").write_text(somebody)
    sockets = Path(running[4])
    sockets.mkdir(mode=0o700)
    (sockets / ".s.PGSQL.5432.lock").write_text("\n".join([somebody, *running[1:5], ""]))

    async with embedded_servers(tmp_path) as servers:
        await (await asyncpg.connect(servers.database_url)).close()


async def test_a_kept_port_that_another_program_holds_is_named_with_the_flag(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (tmp_path / "ports.json").write_text(json.dumps({"nats": port}))

        with pytest.raises(PortTaken, match=rf"{port}.*--nats-port"):
            async with embedded_servers(tmp_path, database_url="postgresql://elsewhere"):
                pass


async def test_a_server_that_ends_by_itself_is_reported(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path, database_url="postgresql://elsewhere") as servers:
        lost = asyncio.ensure_future(servers.failed())
        os.kill(servers.children[0].pid, signal.SIGKILL)

        assert "nats-server ended" in str(await asyncio.wait_for(lost, 5))


async def test_a_data_directory_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedError, match="--data-dir"):
        async with embedded_servers(tmp_path / "file"):
            pass


async def test_an_invalid_seed_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "worker.nk").write_text("nonsense")

    with pytest.raises(EmbeddedError, match=r"worker\.nk"):
        async with embedded_servers(tmp_path, database_url="postgresql://elsewhere"):
            pass


async def test_seeds_are_private_and_kept(tmp_path: Path) -> None:
    def seeds() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "credentials").iterdir()}

    async with embedded_servers(tmp_path, database_url="postgresql://elsewhere") as servers:
        first = seeds()
    async with embedded_servers(tmp_path, database_url="postgresql://elsewhere"):
        assert seeds() == first

    assert set(first) == {
        f"{role}.nk"
        for role in ("operator", "chat-service", "provisioner", "worker", "gateway", "issuer")
    }
    assert stat.S_IMODE(servers.credentials.stat().st_mode) == 0o700
    for name in first:
        assert stat.S_IMODE((servers.credentials / name).stat().st_mode) == 0o600


async def test_without_a_seed_the_server_refuses(connect_as: ConnectAs) -> None:
    with pytest.raises(nats.errors.Error, match="Authorization"):
        await connect_as("operator", nkeys_seed=None)


def test_an_ordinary_user_runs_the_servers_as_itself(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("all the other tests show it: this is not root")
    if (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("setpriv is missing")
    # Through env: setpriv itself still has root's rights when it looks up the program.
    as_nobody = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/env"]
    python = a_python_for(as_nobody)
    if python is None:
        pytest.skip("no Python 3.11 that an ordinary user may run")
    # The directories of pytest are below one that only root can enter.
    home = Path("/tmp") / f"workspaced-nobody-{os.getpid()}"
    home.mkdir(mode=0o755)
    os.chown(home, 65534, 65534)
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])
    try:
        with an_owner(home / "data", *as_nobody, python=python, PYTHONPATH=path, HOME="/") as (
            process,
            said,
        ):
            uids = {Path(f"/proc/{pid}").stat().st_uid for pid in said["pids"]}
            assert uids == {65534}
            process.communicate(timeout=10)
            assert process.returncode == 0
            assert all_ended(said["pids"])
    finally:
        shutil.rmtree(home)


def a_python_for(as_user: list[str]) -> str | None:
    """Return a Python with which another user can import everything; the clone may be private."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    code = f"import sys; sys.path[:0] = {[str(ROOT), *packages]}; import asyncpg, handlers.embedded"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        tried = subprocess.run([*as_user, python, "-c", code], check=False, capture_output=True)
        if tried.returncode == 0:
            return python
    return None
