"""Unpacking a template's archive writes nothing outside of the workspace."""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import handlers.template_archive
from handlers.provisioner import archive as provisioner_archive
from handlers.provisioner.archive import sensitive_values, unpack
from handlers.template_archive import BadArchive
from tests.provisioner.rig import packed

Member = tuple[str, bytes, str]
"""Name and type of a member, and the target of a link."""


def archive(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            data = b"x" if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/evil", tarfile.REGTYPE, "")],
        [("../evil", tarfile.REGTYPE, "")],
        [("a/../../evil", tarfile.REGTYPE, "")],
        [(".workspaced/agents/x", tarfile.REGTYPE, "")],
        [("./.workspaced/template", tarfile.REGTYPE, "")],
        [("out", tarfile.SYMTYPE, "../../evil")],
        [("out", tarfile.SYMTYPE, "/etc/passwd")],
        [("out", tarfile.LNKTYPE, "../evil")],
        [("a", tarfile.SYMTYPE, "b"), ("a/evil", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "b"), ("a", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, ".."), ("b", tarfile.LNKTYPE, "a/passwd")],
        [("b", tarfile.SYMTYPE, "d/a/.."), ("d/a", tarfile.SYMTYPE, "..")],
        [("a", tarfile.SYMTYPE, "b"), ("b", tarfile.SYMTYPE, "..")],
        [("a", tarfile.REGTYPE, ""), ("a/b", tarfile.REGTYPE, "")],
        [("a", tarfile.LNKTYPE, "missing")],
        [("unknown", b"Z", "")],
        [("a", tarfile.REGTYPE, ""), ("same", tarfile.LNKTYPE, "a")],
        [("a", tarfile.REGTYPE, ""), ("link", tarfile.SYMTYPE, "a")],
        [("null", tarfile.CHRTYPE, "")],
        [("disk", tarfile.BLKTYPE, "")],
        [("pipe", tarfile.FIFOTYPE, "")],
    ],
)
def test_entries_that_leave_the_workspace_are_rejected(
    tmp_path: Path, members: list[Member]
) -> None:
    workspace = tmp_path / "in" / "workspace"
    workspace.mkdir(parents=True)

    with pytest.raises(BadArchive):
        unpack(archive(tmp_path / "evil.tar.gz", *members), "v1", workspace)

    assert [path.name for path in workspace.iterdir()] == [".workspaced"]
    assert not list((workspace / ".workspaced").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"evil.tar.gz", "in"}


def test_files_that_are_not_archives_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(packed({"a": "b" * 10_000})[:40])

    with pytest.raises(BadArchive):
        unpack(tmp_path / "broken", "v1", tmp_path / "workspace")


def test_files_and_folders_are_unpacked_with_their_modes(tmp_path: Path) -> None:
    """With every Python version; those before 3.11.4 have no extraction filters."""
    modes = {"plain": 0o666, "program": 0o4777, "closed": 0o011, "folder/deep/file": 0o640}
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as file:
        for name, mode in modes.items():
            member = tarfile.TarInfo(name)
            member.mode, member.size, member.mtime = mode, len(name), 7
            member.uid = member.gid = 12345
            file.addfile(member, io.BytesIO(name.encode()))
        for name in ("empty", "./"):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            file.addfile(member)
        file.addfile(tarfile.TarInfo("program"))
        again = tarfile.TarInfo("program")
        again.mode, again.size, again.mtime = 0o755, 1, 2**70
        file.addfile(again, io.BytesIO(b"2"))

    workspace = tmp_path / "workspace"
    unpack(tmp_path / "all.tar.gz", "v1", workspace)

    def mode(name: str) -> int:
        return (workspace / name).stat().st_mode & 0o7777

    assert {name: mode(name) for name in modes} == {
        "plain": 0o644,
        "program": 0o755,
        "closed": 0o600,
        "folder/deep/file": 0o640,
    }
    assert (workspace / "program").read_text() == "2"
    assert (workspace / "empty").is_dir()
    assert (workspace / "plain").stat().st_mtime == 7
    assert {path.lstat().st_uid for path in workspace.iterdir()} == {os.geteuid()}


def test_an_existing_link_in_the_workspace_is_replaced_not_followed(tmp_path: Path) -> None:
    outside, workspace = tmp_path / "outside", tmp_path / "workspace"
    outside.mkdir()
    workspace.mkdir()
    (workspace / "src").symlink_to(outside)
    (workspace / "build.sh").symlink_to(outside / "file")
    (tmp_path / "good").write_bytes(packed({"src/a": "1", "build.sh": "2"}))

    unpack(tmp_path / "good", "v1", workspace)

    assert not list(outside.iterdir())
    assert ((workspace / "src/a").read_text(), (workspace / "build.sh").read_text()) == ("1", "2")


def test_a_link_created_during_unpacking_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program left by an earlier build may create links while the archive is unpacked."""
    outside, workspace = tmp_path / "outside", tmp_path / "workspace"
    outside.mkdir()
    workspace.mkdir()
    (tmp_path / "good").write_bytes(packed({"src/a": "1"}))
    pin = provisioner_archive.pinned_directory

    def late(directory: Path) -> AbstractContextManager[Path]:
        if directory.name == "src":
            directory.rmdir()
            directory.symlink_to(outside)
        return pin(directory)

    monkeypatch.setattr(provisioner_archive, "pinned_directory", late)
    with pytest.raises(BadArchive):
        unpack(tmp_path / "good", "v1", workspace)

    assert not list(outside.iterdir())


def test_a_new_version_is_merged_into_the_workspace(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    for version, files in (("v1", {"a": "1", "b": "1"}), ("v2", {"a": "2"})):
        (tmp_path / version).write_bytes(packed(files))
        unpack(tmp_path / version, version, workspace)
        (workspace / "mine").write_text("kept")

    assert [(workspace / name).read_text() for name in ("a", "b", "mine")] == ["2", "1", "kept"]


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ('[[parameter]]\nname = "a"\nsensitive = true\n[[parameter]]\nname = "b"\n', ["1"]),
        ("not toml [", ["1", "2"]),
    ],
)
def test_values_are_sensitive_as_declared_and_all_are_without_a_readable_manifest(
    tmp_path: Path, manifest: str, expected: list[str]
) -> None:
    (tmp_path / "t").write_bytes(packed({"template.toml": manifest}))
    unpack(tmp_path / "t", "v1", tmp_path / "workspace")
    (tmp_path / "workspace" / "template.toml").write_text("")  # the user may change it

    assert sensitive_values(tmp_path / "workspace", {"a": "1", "b": "2"}) == expected


@pytest.mark.parametrize("what", ["large", "many", "lying"])
def test_an_archive_bomb_is_rejected_before_it_is_unpacked(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes that the archive declares are checked first, and no more than that is written."""
    monkeypatch.setattr(handlers.template_archive, "MAX_ENTRIES", 100)
    with tarfile.open(tmp_path / "bomb", "w:gz", compresslevel=1) as file:
        if what == "many":
            for number in range(101):
                file.addfile(tarfile.TarInfo(f"f{number}"))
        else:
            member = tarfile.TarInfo("zeros")
            member.size = 2 ** (40 if what == "lying" else 30)
            file.addfile(member)

    with pytest.raises(BadArchive):
        unpack(tmp_path / "bomb", "v1", tmp_path / "workspace")

    assert [path.name for path in (tmp_path / "workspace").iterdir()] == [".workspaced"]
    assert not list((tmp_path / "workspace/.workspaced").iterdir())
