"""`up` notices when its files are removed, for example at logout or by a temporary-file cleaner."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handlers.embedded import Servers, embedded_servers
from handlers.embedded.inotify import wait_until_removed
from tests.rigs.processes import kill_processes, processes_using, run, start_up

PATIENCE = 30


def sockets(servers: Servers) -> Path:
    (child,) = [child for child in servers.children if child.name == "PostgreSQL"]
    return child.needs[0]


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ws-", ignore_cleanup_errors=True) as above:
        directory = Path(above) / "user"
        directory.mkdir(mode=0o700)
        yield directory


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def moved(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}-elsewhere"))


PLACES = (
    *("sockets", "socket", "runtime directory", "data directory", "directory above"),
    *("nats/jetstream", "credentials", "lock", "servers.json"),
)
MOVED = ("sockets", "data directory", "directory above")


@pytest.mark.parametrize(
    ("what", "how"), [*((p, removed) for p in PLACES), *((p, moved) for p in MOVED)]
)
async def test_a_removed_file_of_running_servers_is_named(
    what: str,
    how: Callable[[Path], None],
    runtime: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "home" / "above" / "data"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    async with embedded_servers(data) as servers:
        there = sockets(servers)
        path = {
            "sockets": there,
            "socket": there / ".s.PGSQL.5432",
            "runtime directory": runtime,
            "data directory": data,
            "directory above": data.parent,
        }.get(what, data / what)
        lost = asyncio.ensure_future(servers.failed())
        # One step of the task is enough: it inspects the files and starts to watch before it waits.
        await asyncio.sleep(0)
        (data / "unrelated").touch()
        (data / "unrelated").unlink()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not lost.done()

        how(path)

        words = str(await asyncio.wait_for(lost, PATIENCE))
    assert "was removed or moved while workspaced ran" in words
    assert str(path) in words or what in ("directory above", "runtime directory")


async def test_a_replaced_or_missing_path_counts_as_removed(tmp_path: Path) -> None:
    kept, replaced = tmp_path / "kept", tmp_path / "replaced"
    kept.touch()
    replaced.touch()
    waiting = asyncio.ensure_future(wait_until_removed([kept, replaced]))
    await asyncio.sleep(0)
    (tmp_path / "new").touch()
    (tmp_path / "other").touch()
    (tmp_path / "new").replace(tmp_path / "other")
    assert not waiting.done()

    (tmp_path / "other").replace(replaced)

    assert await asyncio.wait_for(waiting, PATIENCE) == replaced
    assert (
        await asyncio.wait_for(wait_until_removed([tmp_path / "never"]), PATIENCE)
        == tmp_path / "never"
    )


def test_up_ends_with_a_message_when_its_socket_directory_is_removed(
    runtime: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    running = start_up(data, env={"XDG_RUNTIME_DIR": str(runtime)})
    try:
        assert str(runtime) in running.ready["database"]
        shutil.rmtree(runtime)
        status = running.process.ended(PATIENCE)
        output = running.process.output()
    finally:
        running.process.kill()
        kill_processes(processes_using(data))

    assert status == 1
    assert "Traceback" not in output
    assert f"{runtime}" in output.splitlines()[-1]
    assert "was removed or moved" in output.splitlines()[-1]
    assert processes_using(data) == []
    with_words = run("chat", "list", "--data-dir", data)
    assert "no workspaced runs on" in with_words.stderr
