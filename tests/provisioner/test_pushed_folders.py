"""Folders that push accepts can be unpacked; for others, push and unpacking give the same error."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import handlers.template_archive
from handlers.provisioner.archive import unpack
from handlers.template_archive import BadArchive, load, pack
from statemachine.templates import TemplateError
from tests.unit.facts import uid

TOML = 'name = "x"\n[build]\nstart = "true"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "template.toml").write_text(TOML)
    return made


def refused_by_push(folder: Path) -> list[str]:
    with pytest.raises(TemplateError) as bad:
        load(folder, uid("org"))
    return str(bad.value).splitlines()


def refused_by_unpacking(folder: Path, tmp_path: Path) -> str:
    """Pack the folder with tar, unpack it, and return the error."""
    with tarfile.open(tmp_path / "any.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False)
    with pytest.raises(BadArchive) as bad:
        unpack(tmp_path / "any.tar.gz", "v1", tmp_path / "workspace")
    return str(bad.value)


def _ours(folder: Path) -> None:
    (folder / ".workspaced").mkdir()
    (folder / ".workspaced" / "x").write_text("x")


def _linked(folder: Path) -> None:
    (folder / "link").symlink_to("template.toml")


def _linked_folder(folder: Path) -> None:
    (folder / "link").symlink_to("/")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _not_utf8(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9")).write_text("x")


def _deep(folder: Path) -> None:
    (folder / "/".join(["d" * 200] * 11)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_ours, "the folder .workspaced belongs to workspaced"),
        (_linked, "'link' is a link"),
        (_linked_folder, "'link' is a link"),
        (_pipe, "'pipe' is a device, a pipe or a socket"),
        (_not_utf8, "has a name that is not UTF-8"),
        (_deep, "has a path longer than 2,048 bytes"),
    ],
    ids=["ours", "link", "linked folder", "pipe", "not UTF-8", "deep"],
)
def test_a_push_and_a_build_refuse_an_unpackable_folder_with_the_same_message(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(folder)

    said = refused_by_push(folder)

    assert words in said[0]
    assert said[0] == f"{folder}: {refused_by_unpacking(folder, tmp_path)}"


def test_a_push_and_a_build_refuse_too_many_or_too_large_files_with_the_same_message(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "zeros").touch()
    os.truncate(folder / "zeros", 600 * 1024 * 1024)
    assert refused_by_push(folder) == [
        f"{folder}: its files have more than 512 MiB together, unpacked"
    ]

    os.truncate(folder / "zeros", 2_000)
    monkeypatch.setattr(handlers.template_archive, "MAX_UNPACKED_BYTES", 1_000)
    assert refused_by_push(folder) == [f"{folder}: {refused_by_unpacking(folder, tmp_path)}"]
    (folder / "zeros").unlink()
    monkeypatch.setattr(handlers.template_archive, "MAX_ENTRIES", 2)
    for name in "abc":
        (folder / name).touch()
    assert refused_by_push(folder) == [f"{folder}: {refused_by_unpacking(folder, tmp_path)}"]


def test_all_problems_of_a_folder_are_listed_at_once(folder: Path) -> None:
    for number in range(30):
        (folder / f"link{number:02}").symlink_to("template.toml")

    said = refused_by_push(folder)

    assert "'link00' is a link" in said[0]
    assert (len(said), said[-1]) == (21, f"{folder}: and 10 more")


def test_files_that_are_never_packed_are_not_checked(folder: Path, tmp_path: Path) -> None:
    for name in (".git", "sub/__pycache__"):
        (folder / name).mkdir(parents=True)
        (folder / name / "link").symlink_to("x")

    (tmp_path / "t.tar.gz").write_bytes(load(folder, uid("org"))[1])
    unpack(tmp_path / "t.tar.gz", "v1", tmp_path / "workspace")

    assert {p.name for p in (tmp_path / "workspace").iterdir()} == {
        ".workspaced",
        "template.toml",
        "sub",
    }


def test_hard_links_are_packed_as_regular_files(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_text("content")
    os.link(folder / "a", folder / "b")

    (tmp_path / "t.tar.gz").write_bytes(pack(folder))
    unpack(tmp_path / "t.tar.gz", "v1", tmp_path / "workspace")

    assert (tmp_path / "workspace" / "b").read_text() == "content"


def test_packing_a_folder_is_deterministic(folder: Path) -> None:
    (folder / "build.sh").write_text("#!/bin/sh\n" * 10_000)
    (folder / "build.sh").chmod(0o755)
    (folder / "sub").mkdir()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(folder)))
            info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
            info.mode = 0o755 if path.is_dir() or info.mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(path.read_bytes()) if path.is_file() else None)

    assert pack(folder) == gzip.compress(plain.getvalue(), mtime=0)


def test_byte_order_marks_are_skipped(folder: Path) -> None:
    (folder / "template.toml").write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    (folder / "README.md").write_bytes(b"\xef\xbb\xbf# Read me")

    version, _ = load(folder, uid("org"))

    assert (version.manifest.name, version.readme) == ("x", "# Read me")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("README.md", b"caf\xe9", "README.md: not UTF-8 text"),
        ("README.md", b"a\0b", "README.md: contains a NUL"),
        ("template.toml", TOML.encode("utf-16"), "template.toml: not UTF-8 text"),
        ("template.toml", b'name = "caf\xe9"', "template.toml: not UTF-8 text"),
        ("template.toml", b"", "template.toml: name: the key is missing"),
    ],
)
def test_a_file_that_is_not_valid_text_is_named(
    folder: Path, file: str, content: bytes, words: str
) -> None:
    (folder / file).write_bytes(content)

    assert words in refused_by_push(folder)[0]


@pytest.mark.parametrize("file", ["README.md", "template.toml"])
def test_a_fifo_in_place_of_a_file_does_not_block_the_push(folder: Path, file: str) -> None:
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)

    assert "is not a regular file" in refused_by_push(folder)[0]
