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

from handlers.template_rules import MOST_ENTRIES, MOST_PACKED, Entry, FolderRules
from statemachine.templates import TemplateError, Version, read, template_id

if TYPE_CHECKING:
    from typing_extensions import Buffer

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
        if count > MOST_ENTRIES:
            return  # too many, whatever is left


def _kind(mode: int) -> Entry:
    if stat.S_ISDIR(mode):
        return Entry.FOLDER
    if stat.S_ISLNK(mode):
        return Entry.LINK
    return Entry.FILE if stat.S_ISREG(mode) else Entry.OTHER


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
        if len(self._packed) > MOST_PACKED:
            raise TemplateError(
                f"{self._folder}: more than {MOST_PACKED} bytes packed; that is the most that is taken"
            )
