"""The tools on files of a workspace: read, write, edit and list.

A relative path starts at the agent's directory. Links and `..` are followed; what limits them is the agent's
confinement. Only regular files and directories are touched: opening anything else may block or have effects.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from statemachine.codec import timestamp
from statemachine.exec_tools import (
    PAGE,
    Edit,
    FileContent,
    FileEdited,
    FileEntry,
    FilesResult,
    FileWritten,
)

JSON_PAGE: Final = 480 * 1024
"""The largest number of bytes that the texts of an answer may need in JSON."""
ENTRIES: Final = 1_000
"""The largest number of entries in one page of a listing."""
MOST_EDITED: Final = 64 * 1024 * 1024
"""Bytes of the largest file that can be edited."""
_LONGEST: Final = 4
"""Bytes of the longest character in UTF-8."""
_DEEPEST: Final = 256
"""Levels that one listing shows at most."""
_LONGEST_NAMED: Final = 256
"""Characters of a path that an error names at most."""
_LINES: Final = 20
"""Line numbers that an error names at most."""
_KINDS: Final = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
)


class Unusable(Exception):
    """The tool can't do that; the text says why."""


class WorkspaceFiles:
    """The files that one agent serves. All methods block, so they are called in threads."""

    def __init__(self, own: Path, directory: Path) -> None:
        """`own`: the folder with the agent's own files; `directory`: where relative paths start."""
        self._own, self.directory = own, directory

    def path(self, given: str) -> str:
        """Return the path that was meant. Raises Unusable if it is one of the agent's own files."""
        if not given:
            raise Unusable("the path is empty")
        if "\0" in given:
            raise Unusable("the path contains a NUL character")
        try:
            os.fsencode(given)
        except UnicodeEncodeError:
            raise Unusable("the path contains half a character (a lone surrogate)") from None
        path = os.path.join(self.directory, given)  # noqa: PTH118 — pathlib would drop `..` and `.`
        own = os.path.realpath(self._own)
        real = os.path.realpath(path)
        if real == own or real.startswith(f"{own}/"):
            raise Unusable(f"{_named(given)} belongs to workspaced and can't be used")
        return path

    def working_directory(self, given: str | None) -> str:
        """Return the absolute path of the directory in which a command is run. Raises Unusable."""
        path = self.path(given or ".")
        shown = given or str(self.directory)
        with _described(shown):
            if not stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116
                raise Unusable(f"{_named(shown)} is not a directory")
        return os.path.realpath(path)

    def read(self, given: str, offset: int, limit: int) -> FileContent:
        """Return a page of a file."""
        path = self.path(given)
        with _described(given):
            file = _open_regular(path, given)
            try:
                size = os.fstat(file).st_size
                wanted = max(1, min(limit, PAGE))
                data = _read_at(file, offset, wanted + _LONGEST)
            finally:
                os.close(file)
        content, encoding, length = _page(data, wanted)
        # A file of /proc has the size 0.
        more = length < len(data)
        size = max(size, offset + len(data) if data else 0)
        page = FileContent(content=content, encoding=encoding, size=size)
        return {**page, "next": offset + length} if more else page

    def write(
        self,
        given: str,
        content: bytes,
        *,
        mode: int | None,
        append: bool,
        create_directories: bool,
    ) -> FileWritten:
        """Write a file, completely or not at all."""
        path = os.path.realpath(self.path(given))
        with _described(given):
            if create_directories:
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            elif not os.path.isdir(os.path.dirname(path)):  # noqa: PTH112, PTH120
                raise Unusable(
                    f"{_named(given)}: its directory does not exist; `create_directories` makes it"
                )
            existing = _existing(path, given)
            size = _replace(path, [content], existing, mode=mode, after=path if append else None)
        return {"size": size}

    def edit(self, given: str, edits: Sequence[Edit]) -> FileEdited:
        """Replace texts in a file: all of them, one after another, or none."""
        path = os.path.realpath(self.path(given))
        with _described(given):
            file = _open_regular(path, given)
            try:
                existing = os.fstat(file)
                if existing.st_size > MOST_EDITED:
                    raise Unusable(
                        f"{_named(given)} has {existing.st_size:,} bytes; files of more than {MOST_EDITED:,} "
                        "can't be edited"
                    )
                content = _read_at(file, 0, MOST_EDITED)
            finally:
                os.close(file)
            replaced = 0
            for number, edit in enumerate(edits, 1):
                content, times = _edited(content, edit, f"edit {number}")
                replaced += times
            if replaced:
                _replace(path, [content], existing, mode=None)
        return {"replaced": replaced}

    def list(self, given: str, depth: int, *, hidden: bool, after: str | None) -> FilesResult:
        """Return a page of the entries below a directory, in the order of the bytes of their paths."""
        path = self.path(given)
        with _described(given):
            if not stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116
                raise Unusable(f"{_named(given)} is not a directory")
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))  # whether it may be read
            prefix = given if given.endswith("/") else f"{given}/"
            start = None if after is None else after.encode(errors="surrogateescape")
            entries: list[FileEntry] = []
            needed = 0
            for entry in self._below(path, prefix, min(depth, _DEEPEST), start, hidden=hidden):
                needed += len(json.dumps(entry, ensure_ascii=False).encode()) + 2
                if entries and (len(entries) == ENTRIES or needed > JSON_PAGE):
                    return {"entries": entries, "next": entries[-1]["path"]}
                entries.append(entry)
        return {"entries": entries}

    def _below(
        self, directory: str, prefix: str, depth: int, after: bytes | None, *, hidden: bool
    ) -> Iterator[FileEntry]:
        """Yield the entries below a directory whose path is above `after`."""
        found: list[tuple[bytes, os.DirEntry[str], bool]] = []
        try:
            scanned = os.scandir(directory)
        except OSError:
            return  # it may not be read, or has been removed meanwhile
        with scanned:
            for entry in scanned:
                if not hidden and entry.name.startswith("."):
                    continue
                if entry.name == self._own.name and self._is_own(entry.path):
                    continue
                name = _shown(entry.name).encode()
                found.append((name, entry, False))
                if depth > 1 and entry.is_dir(follow_symlinks=False):
                    # What is below it comes after `name.txt`, because `.` is less than `/`.
                    found.append((name + b"/", entry, True))
        start = prefix.encode(errors="surrogateescape")
        for key, entry, below in sorted(found, key=lambda one: one[0]):
            whole = start + key
            if below:
                if after is None or whole > after or after.startswith(whole):
                    shown = f"{prefix}{_shown(entry.name)}/"
                    yield from self._below(entry.path, shown, depth - 1, after, hidden=hidden)
            elif after is None or whole > after:
                with suppress(OSError):  # removed meanwhile
                    yield _described_entry(prefix + _shown(entry.name), entry)

    def _is_own(self, path: str) -> bool:
        try:
            return os.path.samefile(path, self._own)  # noqa: PTH121
        except OSError:
            return False


class _described:  # noqa: N801 — used like a function
    """Turn OSError into Unusable, with the path as it was given."""

    def __init__(self, given: str) -> None:
        self._given = given

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise Unusable(f"{_named(self._given)}: {error.strerror or error}") from error


def _open_regular(path: str, given: str) -> int:
    _require_regular(os.stat(path), given)  # before it is opened: that alone can have effects  # noqa: PTH116
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(file), given)
    except BaseException:
        os.close(file)
        raise
    return file


def _require_regular(about: os.stat_result, given: str) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise Unusable(f"{_named(given)} is a {_kind(about.st_mode)}, not a regular file")


def _existing(path: str, given: str) -> os.stat_result | None:
    try:
        about = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    _require_regular(about, given)
    return about


def _kind(mode: int) -> str:
    return next((name for check, name in _KINDS if check(mode)), "special file")


def _read_at(file: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length > 0 and (data := os.pread(file, length, offset)):
        parts.append(data)
        offset, length = offset + len(data), length - len(data)
    return b"".join(parts)


def _page(data: bytes, wanted: int) -> tuple[str, Literal["utf-8", "base64"], int]:
    """Return content, encoding and length of a page; `data` may be a few bytes longer than `wanted`."""
    whole = data[:wanted]
    text = _text(whole, data)
    if text is None:
        return base64.b64encode(whole).decode(), "base64", len(whole)
    text = fitting(text)
    return text, "utf-8", len(text.encode())


def _text(whole: bytes, data: bytes) -> str | None:
    """Return the characters of a page that are complete; None if it is not UTF-8."""
    try:
        return whole.decode()
    except UnicodeDecodeError as error:
        start = error.start
        if error.reason != "unexpected end of data" or len(data) == len(whole):
            return None
    for end in range(start + 1, min(start + _LONGEST, len(data)) + 1):
        with suppress(UnicodeDecodeError):
            character = data[start:end].decode()
            return whole[:start].decode() or character
    return None


def fitting(text: str) -> str:
    """Return as much of a text as may stand in one answer, whatever JSON needs for it."""
    while (needed := len(json.dumps(text, ensure_ascii=False).encode())) > JSON_PAGE:
        text = text[: max(1, len(text) * JSON_PAGE // needed - 1)]
    return text


def _replace(
    path: str,
    parts: Sequence[bytes],
    existing: os.stat_result | None,
    *,
    mode: int | None,
    after: str | None = None,
) -> int:
    """Put a new file in the place of an old one, and return its size; `after`: a file that comes first."""
    new = os.path.join(os.path.dirname(path), f".workspaced-{secrets.token_hex(8)}")  # noqa: PTH118, PTH120
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(file, "wb") as writing:  # noqa: PTH123 — a descriptor
            if after is not None and existing is not None:
                with open(after, "rb") as reading:  # noqa: PTH123
                    shutil.copyfileobj(reading, writing, 1024 * 1024)
            writing.writelines(parts)
            writing.flush()
            if existing is not None:
                about = os.fstat(file)
                if (about.st_uid, about.st_gid) != (existing.st_uid, existing.st_gid):
                    with suppress(OSError):
                        os.fchown(file, existing.st_uid, existing.st_gid)
            if mode is None and existing is not None:
                mode = stat.S_IMODE(existing.st_mode)
            if mode is not None:
                os.fchmod(file, mode)
            os.fsync(file)
            size = os.fstat(file).st_size
        os.replace(new, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):
            os.unlink(new)  # noqa: PTH108
        raise
    return size


def _edited(content: bytes, edit: Edit, name: str) -> tuple[bytes, int]:
    """Return the content after an edit, and how often it was made. Raises Unusable."""
    old, new = _encoded(edit.old, name), _encoded(edit.new, name)
    if not old:
        raise Unusable(f"{name}: `old` is empty; nothing was changed")
    places = _places(content, old)
    if not places:
        raise Unusable(f"{name}: `old` occurs 0 times in the file; nothing was changed")
    if edit.all:
        return content.replace(old, new), content.count(old)
    if len(places) > 1:
        lines = ", ".join(str(content.count(b"\n", 0, at) + 1) for at in places[:_LINES])
        more = ", …" if len(places) > _LINES else ""
        raise Unusable(
            f"{name}: `old` occurs {len(places)} times, in lines {lines}{more}; nothing was changed: give "
            "more of what surrounds it, or `all`"
        )
    return content.replace(old, new), 1


def _encoded(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Unusable(f"{name}: half a character (a lone surrogate) can't be written") from None


def _places(content: bytes, old: bytes) -> list[int]:
    """Return where `old` occurs, also where occurrences overlap."""
    places, at = [], content.find(old)
    while at >= 0:
        places.append(at)
        at = content.find(old, at + 1)
    return places


def _described_entry(path: str, entry: os.DirEntry[str]) -> FileEntry:
    about = entry.stat(follow_symlinks=False)
    return {
        "path": path,
        "kind": _listed_kind(about.st_mode),
        "size": about.st_size,
        "modified_at": timestamp(datetime.fromtimestamp(about.st_mtime, UTC)),
    }


def _listed_kind(mode: int) -> Literal["file", "directory", "link", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _named(path: str) -> str:
    """Return a path for an error message."""
    return repr(path if len(path) <= _LONGEST_NAMED else f"{path[:_LONGEST_NAMED]}…")


def _shown(name: str) -> str:
    """Return a name as JSON can carry it: bytes that are not UTF-8 are replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
