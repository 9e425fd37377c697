"""The archive format of a template's folder: what it may contain, packing it, and extracting it.

`workspaced template push` packs and provisioners extract, with the same rules and the same messages.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

from handlers.publishing.agent_files import OWN_FOLDER
from statemachine.templates import TemplateError, Version, read, template_id

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_PACKED_BYTES: Final = 16 * 1024 * 1024
"""Largest size of an archive, in bytes."""
MAX_ENTRIES: Final = 20_000
"""Largest number of files and folders."""
MAX_UNPACKED_BYTES: Final = 512 * 1024 * 1024
"""Largest size of all files together, in bytes."""
MAX_NAME_BYTES: Final = 255
"""Largest size of one name in bytes, the limit of Linux."""
MAX_PATH_BYTES: Final = 2_048
"""Largest size of a path in bytes: half the limit of Linux, since the workspace's path precedes it."""
_NAME_SHOWN: Final = 200


MANIFEST_SIZE: Final = 48 * 1024
"""Largest template.toml in bytes: a reply with ten templates, even if all is escaped, fits in a message."""
_MANIFEST: Final = "template.toml"
_README: Final = "README.md"
_PROBLEMS_LISTED: Final = 20
"""Problems of a folder that an error lists one by one."""
_NEVER_PACKED: Final = (".git", "__pycache__", ".DS_Store")


class BadArchive(Exception):
    """A template's archive can't be fetched, or must not be extracted."""


class EntryKind(Enum):
    """The kind of an entry of the folder."""

    FILE = auto()
    FOLDER = auto()
    LINK = auto()
    OTHER = auto()
    """A device, a pipe or a socket."""


class FolderRules:
    """Checks the entries of one folder, one after another."""

    def __init__(self) -> None:
        self._entries = self._bytes = 0

    def fault(self, name: str, entry: EntryKind, size: int = 0) -> str | None:
        """Return why the folder must not contain this entry after the earlier ones, or None if it may."""
        self._entries += 1
        self._bytes += size if entry is EntryKind.FILE else 0
        if self._entries > MAX_ENTRIES:
            return f"it holds more than {MAX_ENTRIES:,} files and folders"
        if size < 0 or self._bytes > MAX_UNPACKED_BYTES:
            return f"its files have more than {MAX_UNPACKED_BYTES >> 20} MiB together, unpacked"
        problem = _name_fault(name) or _kind_fault(entry)
        shown = name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}…"
        return f"{shown!r} {problem}" if problem else None

    @property
    def exhausted(self) -> bool:
        """Whether the folder is too large, so that checking more entries is useless."""
        return self._entries > MAX_ENTRIES or self._bytes > MAX_UNPACKED_BYTES


def _name_fault(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the folder"
    if path.parts and path.parts[0] == OWN_FOLDER:
        return f"can't be in a template: the folder {OWN_FOLDER} belongs to workspaced"
    if "\0" in name:
        return "has a NUL character in its name"
    try:
        lengths = [len(part.encode()) for part in path.parts]
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    if max(lengths, default=0) > MAX_NAME_BYTES:
        return f"has a name longer than {MAX_NAME_BYTES} bytes"
    if len(str(path).encode()) > MAX_PATH_BYTES:
        return f"has a path longer than {MAX_PATH_BYTES:,} bytes"
    return None


def _kind_fault(entry: EntryKind) -> str | None:
    if entry is EntryKind.LINK:
        return "is a link; a template holds only files and folders"
    if entry is EntryKind.OTHER:
        return "is a device, a pipe or a socket; a template holds only files and folders"
    return None


def load(folder: Path, organization_id: str) -> tuple[Version, bytes]:
    """Read a template's folder; return its version and its archive. Raises TemplateError."""
    manifest = read(_manifest_text(folder / _MANIFEST), file=str(folder / _MANIFEST))
    readme = _readme_text(folder / _README)
    archive = pack(folder)
    digest, identifier = sha256(archive).hexdigest(), template_id(organization_id, manifest.name)
    version_id = str(uuid5(UUID(identifier), digest))
    return Version(version_id, identifier, manifest, readme, digest, len(archive)), archive


def pack(folder: Path) -> bytes:
    """Pack a folder as tar.gz without times and owners: the same content always gives the same bytes.

    Raises TemplateError that lists everything that a provisioner would refuse to extract.

    """
    paths = _checked_paths(folder)
    packed = _Compressed(folder)
    try:
        with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for path in paths:
                _add(tar, path, str(path.relative_to(folder)))
    except OSError as error:
        raise TemplateError(f"{folder}: can't be packed: {error}") from None
    return packed.finish()


def _manifest_text(file: Path) -> str:
    try:
        status = file.stat()
        if status.st_size > MANIFEST_SIZE:
            raise TemplateError(
                f"{file}: {status.st_size} bytes; the limit is {MANIFEST_SIZE}. "
                "Put scripts into files of their own"
            )
        return _text(file, status.st_mode)
    except FileNotFoundError:
        raise TemplateError(
            f"{file}: no such file; a template is a folder that contains one"
        ) from None
    except NotADirectoryError:
        raise TemplateError(f"{file.parent} is a file; name the folder instead") from None
    except OSError as error:
        raise TemplateError(f"{file}: {error.strerror}") from None


def _readme_text(file: Path) -> str | None:
    try:
        text = _text(file, file.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TemplateError(f"{file}: {error.strerror}") from None
    if "\0" in text:
        raise TemplateError(f"{file}: contains a NUL character")
    return text


def _text(file: Path, mode: int) -> str:
    """Read a text file, with or without a byte order mark. Raises TemplateError and OSError."""
    if not stat.S_ISREG(mode):
        raise TemplateError(f"{file}: is not a regular file")
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{file}: not UTF-8 text: {error}") from None


def _checked_paths(folder: Path) -> list[Path]:
    """Return the paths to pack, sorted. Raises TemplateError that lists all problems."""
    rules, problems = FolderRules(), list[str]()
    found = sorted(_walk(folder))
    for path in found:
        try:
            status = path.lstat()
        except OSError as error:
            raise TemplateError(f"{path}: {error.strerror}") from None
        fault = rules.fault(str(path.relative_to(folder)), _kind(status.st_mode), status.st_size)
        if fault is not None:
            problems.append(f"{folder}: {fault}")
        if rules.exhausted:
            break
    if problems:
        more = (
            [f"{folder}: and {len(problems) - _PROBLEMS_LISTED} more"]
            if len(problems) > _PROBLEMS_LISTED
            else []
        )
        raise TemplateError("\n".join([*problems[:_PROBLEMS_LISTED], *more]))
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the folder's files and folders, except those that are never packed."""

    def unreadable(bad: OSError) -> None:
        raise TemplateError(f"{bad.filename}: {bad.strerror}")

    count = 0
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if name not in _NEVER_PACKED]
        for name in (*folders, *files):
            if name not in _NEVER_PACKED:
                yield Path(parent, name)
                count += 1
        if count > MAX_ENTRIES:
            return  # the limit is already exceeded


def _kind(mode: int) -> EntryKind:
    if stat.S_ISDIR(mode):
        return EntryKind.FOLDER
    if stat.S_ISLNK(mode):
        return EntryKind.LINK
    return EntryKind.FILE if stat.S_ISREG(mode) else EntryKind.OTHER


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file or folder to the archive. A file with several hard links is stored like any other."""
    # Without following links or waiting for a FIFO: it may have been replaced since the check.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(opened)
        info = tarfile.TarInfo(name)
        if stat.S_ISDIR(status.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
            return
        info.size = status.st_size
        info.mode = 0o755 if status.st_mode & 0o100 else 0o644
        with os.fdopen(opened, "rb", closefd=False) as content:
            tar.addfile(info, content)
    finally:
        os.close(opened)


class _Compressed(io.RawIOBase):
    """A file object that compresses a tar as it is written. Raises TemplateError beyond the limit."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._packed = folder, bytearray()
        # The same bytes as gzip.compress without a time, so that a folder keeps its version.
        self._compressor = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)

    def write(self, piece: Buffer, /) -> int:
        """Compress the next piece."""
        data = bytes(piece)
        self._append(self._compressor.compress(data))
        return len(data)

    def finish(self) -> bytes:
        """Return the complete archive."""
        self._append(self._compressor.flush())
        return bytes(self._packed)

    def _append(self, packed: bytes) -> None:
        self._packed += packed
        if len(self._packed) > MAX_PACKED_BYTES:
            raise TemplateError(
                f"{self._folder}: its archive exceeds the limit of {MAX_PACKED_BYTES} bytes"
            )


def extract(packed: tarfile.TarFile, into: Path) -> None:
    """Extract an archive into an empty folder that no other program writes to.

    Raises BadArchive for an entry that a template must not have, and the errors of tarfile and OSError.
    """
    rules = FolderRules()
    for member in packed:
        if fault := rules.fault(member.name, _member_kind(member), member.size):
            raise BadArchive(fault)
        _extract_member(packed, member, into / PurePosixPath(member.name))


def _member_kind(member: tarfile.TarInfo) -> EntryKind:
    if member.isdir():
        return EntryKind.FOLDER
    if member.issym() or member.islnk():
        return EntryKind.LINK
    return EntryKind.FILE if member.isreg() else EntryKind.OTHER


def _extract_member(packed: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Create one file or folder at `target`, owned by this process.

    `TarFile.extract` is not used: before Python 3.11.4 it has no filters that make it safe.

    """
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # as in every tar program, the last entry of a name wins
    new = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(new, "wb") as file:
        if (content := packed.extractfile(member)) is not None:
            shutil.copyfileobj(content, file)
        file.flush()
        os.fchmod(new, _file_mode(member))
        with suppress(OSError, OverflowError):  # the archive may contain any number as a time
            os.utime(new, (member.mtime, member.mtime))


def _file_mode(member: tarfile.TarInfo) -> int:
    """Return a file's mode: executable for everybody or nobody, and writable by its owner only."""
    executable = 0o111 if member.mode & 0o100 else 0
    return member.mode & 0o044 | executable & member.mode | 0o600
