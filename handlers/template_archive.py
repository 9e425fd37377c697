"""A template's folder as a version: read, checked and packed, the same folder always to the same bytes."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

from statemachine.templates import TemplateError, Version, read, template_id

if TYPE_CHECKING:
    from typing_extensions import Buffer
from enum import Enum, auto
from pathlib import PurePosixPath

from handlers.publishing.agent_files import OWN_FOLDER

MAX_PACKED_BYTES: Final = 16 * 1024 * 1024
"""Bytes of a packed folder."""
MAX_ENTRIES: Final = 20_000
"""Files and folders in it."""
MAX_UNPACKED_BYTES: Final = 512 * 1024 * 1024
"""Bytes of all its files."""
MAX_NAME_BYTES: Final = 255
"""Bytes of one name, as Linux has it."""
MAX_PATH_BYTES: Final = 2_048
"""Bytes of a path in the folder: half of what Linux takes, for the workspace's own path comes before it."""
_SHOWN: Final = 200


class EntryKind(Enum):
    """What a path in the folder is."""

    FILE = auto()
    FOLDER = auto()
    LINK = auto()
    OTHER = auto()
    """A device, a pipe or a socket."""


class FolderRules:
    """Looks at one folder's entries, one after the other."""

    def __init__(self) -> None:
        self._entries = self._bytes = 0

    def fault(self, name: str, entry: EntryKind, size: int = 0) -> str | None:
        """Say why the folder can't have this entry after those before it, or None if it can."""
        self._entries += 1
        self._bytes += size if entry is EntryKind.FILE else 0
        if self._entries > MAX_ENTRIES:
            return f"it holds more than {MAX_ENTRIES:,} files and folders"
        if size < 0 or self._bytes > MAX_UNPACKED_BYTES:
            return f"its files have more than {MAX_UNPACKED_BYTES >> 20} MiB together, unpacked"
        problem = _of_name(name) or _of_kind(entry)
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        return f"{shown!r} {problem}" if problem else None

    @property
    def exhausted(self) -> bool:
        """Whether the folder is too large, so that more entries tell nothing new."""
        return self._entries > MAX_ENTRIES or self._bytes > MAX_UNPACKED_BYTES


def _of_name(name: str) -> str | None:
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


def _of_kind(entry: EntryKind) -> str | None:
    if entry is EntryKind.LINK:
        return "is a link; a template holds only files and folders"
    if entry is EntryKind.OTHER:
        return "is a device, a pipe or a socket; a template holds only files and folders"
    return None


MANIFEST_SIZE: Final = 48 * 1024
"""Bytes of template.toml: an answer that lists ten templates, all escaped, still is one message."""
_MANIFEST: Final = "template.toml"
_README: Final = "README.md"
_NAMED: Final = 20
"""Faults of a folder that are named one by one."""
_LEFT_OUT: Final = (".git", "__pycache__", ".DS_Store")


def load(folder: Path, organization_id: str) -> tuple[Version, bytes]:
    """Read a template's folder; return its version and archive. Raises TemplateError."""
    manifest = read(_manifest_text(folder / _MANIFEST), file=str(folder / _MANIFEST))
    readme = _readme_text(folder / _README)
    archive = pack(folder)
    digest, identifier = sha256(archive).hexdigest(), template_id(organization_id, manifest.name)
    version_id = str(uuid5(UUID(identifier), digest))
    return Version(version_id, identifier, manifest, readme, digest, len(archive)), archive


def pack(folder: Path) -> bytes:
    """Pack a folder as tar.gz without times and owners, the same folder always to the same bytes.

    Raises TemplateError that names what no provisioner would unpack.
    """
    paths = _checked(folder)
    packed = _Compressed(folder)
    try:
        with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for path in paths:
                _add(tar, path, str(path.relative_to(folder)))
    except OSError as bad:
        raise TemplateError(f"{folder}: can't be packed: {bad}") from None
    return packed.whole()


def _manifest_text(file: Path) -> str:
    try:
        status = file.stat()
        if status.st_size > MANIFEST_SIZE:
            raise TemplateError(
                f"{file}: {status.st_size} bytes; at most {MANIFEST_SIZE} are taken. "
                "Scripts may lie beside it"
            )
        return _text(file, status.st_mode)
    except FileNotFoundError:
        raise TemplateError(
            f"{file}: there is no such file; a template is a folder with one"
        ) from None
    except NotADirectoryError:
        raise TemplateError(f"{file.parent} is a file: name the folder, not the file") from None
    except OSError as bad:
        raise TemplateError(f"{file}: {bad.strerror}") from None


def _readme_text(file: Path) -> str | None:
    try:
        text = _text(file, file.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as bad:
        raise TemplateError(f"{file}: {bad.strerror}") from None
    if "\0" in text:
        raise TemplateError(f"{file}: contains a NUL character")
    return text


def _text(file: Path, mode: int) -> str:
    """Read a text, with or without a byte order mark. Raises TemplateError and OSError."""
    if not stat.S_ISREG(mode):
        raise TemplateError(f"{file}: is no plain file")
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as bad:
        raise TemplateError(f"{file}: not UTF-8 text: {bad}") from None


def _checked(folder: Path) -> list[Path]:
    """Return what is to be packed, in order. Raises TemplateError that names all that is refused."""
    rules, problems = FolderRules(), list[str]()
    found = sorted(_below(folder))
    for path in found:
        try:
            status = path.lstat()
        except OSError as bad:
            raise TemplateError(f"{path}: {bad.strerror}") from None
        fault = rules.fault(str(path.relative_to(folder)), _kind(status.st_mode), status.st_size)
        if fault is not None:
            problems.append(f"{folder}: {fault}")
        if rules.exhausted:
            break
    if problems:
        more = [f"{folder}: and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        raise TemplateError("\n".join([*problems[:_NAMED], *more]))
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Yield the folder's files and folders, without those that are never packed."""

    def unreadable(bad: OSError) -> None:
        raise TemplateError(f"{bad.filename}: {bad.strerror}")

    count = 0
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in (*folders, *files):
            if name not in _LEFT_OUT:
                yield Path(parent, name)
                count += 1
        if count > MAX_ENTRIES:
            return  # too many, whatever is left


def _kind(mode: int) -> EntryKind:
    if stat.S_ISDIR(mode):
        return EntryKind.FOLDER
    if stat.S_ISLNK(mode):
        return EntryKind.LINK
    return EntryKind.FILE if stat.S_ISREG(mode) else EntryKind.OTHER


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file or folder; one with several hard links is a file like any other."""
    # Opened without waiting or following: it may have been replaced since it was checked.
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
    """Takes a tar as it is written, and compresses it. Raises TemplateError when it is too much."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._packed = folder, bytearray()
        # As gzip.compress of the whole with no time, so that a folder keeps its version.
        self._compressor = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)

    def write(self, piece: Buffer, /) -> int:
        """Compress what comes next."""
        data = bytes(piece)
        self._take(self._compressor.compress(data))
        return len(data)

    def whole(self) -> bytes:
        """Return all of it, once everything is written."""
        self._take(self._compressor.flush())
        return bytes(self._packed)

    def _take(self, packed: bytes) -> None:
        self._packed += packed
        if len(self._packed) > MAX_PACKED_BYTES:
            raise TemplateError(
                f"{self._folder}: more than {MAX_PACKED_BYTES} bytes packed; that is the most that is taken"
            )
