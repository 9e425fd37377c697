"""The tools on files: pages, whole writes, edits all or none, listings, and what is refused."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers.embedded import Servers
from tests.agent.exec_rig import ExecRig


@pytest.fixture
async def rig(servers: Servers, tmp_path: Path) -> AsyncIterator[ExecRig]:
    async with ExecRig.on(servers, tmp_path) as rig, rig.living(work_directory="work"):
        (tmp_path / "work").mkdir()
        yield rig


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_file_is_read_in_pages_of_whole_characters(rig: ExecRig) -> None:
    file = rig.workspace / "work" / "file"
    file.write_bytes("aä€".encode() * 2)
    assert await rig.done("read_file", path="file") == {
        "content": "aä€aä€",
        "encoding": "utf-8",
        "size": 12,
    }
    first = await rig.done("read_file", path="file", limit=2)
    assert (first["content"], first["next"]) == ("a", 1)
    second = await rig.done("read_file", path="file", offset=1, limit=1)
    assert (second["content"], second["next"]) == ("ä", 3)
    inside = await rig.done("read_file", path="file", offset=2, limit=1)
    assert inside["encoding"] == "base64"
    past = await rig.done("read_file", path="../work/./file", offset=99)
    assert past == {"content": "", "encoding": "utf-8", "size": 12}


async def test_a_binary_file_is_base64_and_large_pages_fit(rig: ExecRig) -> None:
    data = bytes(range(256)) * 2048
    (rig.workspace / "work" / "binary").write_bytes(data)
    (rig.workspace / "work" / "zeros").write_bytes(bytes(300_000))
    read, after = b"", 0
    while True:
        page = await rig.done("read_file", path="binary", offset=after, limit=10_000_000)
        assert page["encoding"] == "base64"
        read += base64.b64decode(page["content"])
        if "next" not in page:
            break
        after = page["next"]
    assert read == data
    zeros = await rig.done("read_file", path="zeros")
    assert zeros["encoding"] == "utf-8"
    assert len(zeros["content"]) == zeros["next"] < 256 * 1024
    assert (await rig.done("read_file", path="/proc/self/status"))["content"].startswith("Name")


async def test_a_file_is_written_whole_with_its_mode(rig: ExecRig) -> None:
    work = rig.workspace / "work"
    assert await rig.done("write_file", path="new", content="ä\n") == {"size": 3}
    assert mode(work / "new") == 0o644
    (work / "script").write_text("old")
    (work / "script").chmod(0o750)
    os.link(work / "script", work / "same")
    (work / "link").symlink_to("script")
    assert await rig.done("write_file", path="link", content="new") == {"size": 3}
    assert (work / "link").is_symlink()
    assert (work / "script").read_text() == "new"
    assert (work / "same").read_text() == "old", "replaced, not written over"
    assert mode(work / "script") == 0o750
    content = base64.b64encode(b"\xff!").decode()
    more = {"path": "script", "content": content, "encoding": "base64", "append": True}
    assert await rig.done("write_file", **more, mode="0600") == {"size": 5}
    assert (work / "script").read_bytes() == b"new\xff!"
    assert mode(work / "script") == 0o600
    assert "create_directories" in await rig.refused("write_file", path="a/b/c", content="")
    assert await rig.done("write_file", path="a/b/c", content="", create_directories=True) == {
        "size": 0
    }
    (work / "dangling").symlink_to("target")
    await rig.done("write_file", path="dangling", content="x")
    assert (work / "target").read_text() == "x"
    assert "mode" in await rig.refused("write_file", path="new", content="", mode="rw")
    assert not list(work.rglob(".workspaced-*"))


async def test_edits_are_made_all_or_none(rig: ExecRig) -> None:
    file = rig.workspace / "work" / "file"
    before = b"one\r\ntwo\none\n\xff\xfe end"
    file.write_bytes(before)
    file.chmod(0o755)
    edits = [{"old": "two", "new": "2"}, {"old": "nowhere", "new": ""}]
    assert "edit 2" in await rig.refused("edit_file", path="file", edits=edits)
    words = await rig.refused("edit_file", path="file", edits=[{"old": "one", "new": "1"}])
    assert "2 times" in words
    assert "1, 3" in words
    assert "empty" in await rig.refused("edit_file", path="file", edits=[{"old": "", "new": "1"}])
    assert file.read_bytes() == before
    edits = [
        {"old": "one", "new": "two", "all": True},
        {"old": "two\r", "new": "first\r"},
        {"old": "two\ntwo", "new": "last"},
    ]
    assert await rig.done("edit_file", path="file", edits=edits) == {"replaced": 4}
    assert file.read_bytes() == b"first\r\nlast\n\xff\xfe end"
    assert mode(file) == 0o755


async def test_a_directory_is_listed_in_order_and_in_pages(rig: ExecRig) -> None:
    work = rig.workspace / "work"
    (work / "a" / "b").mkdir(parents=True)
    for name in ("a.txt", "a-x", "a/z", "a/b/c", ".hidden"):
        (work / name).write_text(name)
    (work / "link").symlink_to("a")
    os.mkfifo(work / "fifo")
    top = (await rig.done("list_files"))["entries"]
    assert [(entry["path"], entry["kind"]) for entry in top] == [
        ("./a", "directory"),
        ("./a-x", "file"),
        ("./a.txt", "file"),
        ("./fifo", "other"),
        ("./link", "link"),
    ]
    assert top[2]["size"] == 5
    assert top[2]["modified_at"].endswith("Z")
    deep = await rig.done("list_files", path=f"{work}/", depth=3, hidden=True)
    paths = [entry["path"] for entry in deep["entries"]]
    names = [".hidden", "a", "a-x", "a.txt", "a/b", "a/b/c", "a/z", "fifo", "link"]
    assert paths == [f"{work}/{name}" for name in names]
    for number in range(2100):
        (work / "a" / "b" / f"f{number}").touch()
    found, after = list[str](), ""
    sizes = []
    while True:
        page = await rig.done("list_files", path="a", depth=9, after=after)
        found += [entry["path"] for entry in page["entries"]]
        sizes.append(len(page["entries"]))
        if "next" not in page:
            break
        after = page["next"]
    assert sizes == [1000, 1000, 103]
    assert found == sorted(found, key=str.encode)
    assert len(set(found)) == 2103


async def test_special_files_and_the_agents_own_are_refused(rig: ExecRig) -> None:
    work = rig.workspace / "work"
    os.mkfifo(work / "fifo")
    (work / "directory").mkdir()
    (work / "own").symlink_to("../.workspaced")
    edits = [{"old": "a", "new": "b"}]
    for path, words in (("fifo", "FIFO"), ("directory", "directory"), ("/dev/null", "device")):
        assert words in await rig.refused("read_file", path=path)
        assert words in await rig.refused("write_file", path=path, content="")
        assert words in await rig.refused("edit_file", path=path, edits=edits)
    for path in ("../.workspaced/x", "own/exec/calls.sqlite", f"{rig.home}/config.json"):
        assert "belongs to workspaced" in await rig.refused("read_file", path=path)
        assert "belongs to workspaced" in await rig.refused("write_file", path=path, content="")
    assert "belongs to workspaced" in await rig.refused("list_files", path="own")
    everything = await rig.done("list_files", path="..", depth=9, hidden=True)
    assert not [e for e in everything["entries"] if "/.workspaced" in e["path"]]
    assert "No such file" in await rig.refused("read_file", path="missing")
    assert "NUL" in await rig.refused("read_file", path="a\0")
    assert "not a directory" in await rig.refused("list_files", path="fifo")
    assert "too long" in await rig.refused("read_file", path="x" * 5000)
