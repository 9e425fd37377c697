"""A template's folder on its way into a workspace: fetched, checked, unpacked where nothing escapes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import tarfile
import tomllib
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from bus import Bus, BusError, ServiceError, subjects
from bus.backoff import Backoff, is_final
from handlers.provisioner.job import Packed
from handlers.publishing.agent_files import OWN_FOLDER
from handlers.publishing.atomic_files import (
    ensure_directory,
    pinned_directory,
    read_regular_file,
    write_atomically,
)
from handlers.template_archive import EntryKind, FolderRules
from statemachine.parameters import Kind

_MANIFEST: Final = "template.toml"
_MANIFEST_SIZE: Final = 1024 * 1024
_MARK: Final = "template"
_SUFFIX: Final = ".tar.gz"
_STAGED: Final = ".unpacked"
"""How the name of a folder ends, beside a workspace, that a template is unpacked to first."""
_ANSWER_WITHIN: Final = 5.0
_LAST: Final = 8
"""Archives that are kept though no workspace here is of their version: those used last."""
_ID_SIZE: Final = 64

_log = logging.getLogger(__name__)


class BadArchive(Exception):
    """The template's archive can't be had, or must not be unpacked."""


class Archives:
    """The archives that this machine has fetched, by version: a version never changes."""

    def __init__(self, bus: Bus, directory: Path, workspaces: Path) -> None:
        self._bus, self._directory, self._workspaces = bus, directory, workspaces
        self._held: Counter[str] = Counter()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in workspaces.glob(f".*{_STAGED}"):  # by a provisioner that was killed
            shutil.rmtree(left, ignore_errors=True)

    @asynccontextmanager
    async def held(self, template: Packed) -> AsyncIterator[Path]:
        """Have the checked archive, fetched unless it is there, to oneself. Raises BadArchive."""
        path = self._directory / f"{template.version_id}{_SUFFIX}"
        self._held[template.version_id] += 1
        try:
            if path.exists() and _sha256(path.read_bytes()) == template.archive.sha256:
                os.utime(path)
            else:
                await self._fetch(template, path)
                await self.prune()
            yield path
        finally:
            self._held[template.version_id] -= 1

    async def prune(self) -> None:
        """Forget archives: not of versions that workspaces here have, nor those used last."""
        try:
            used = await asyncio.to_thread(_versions_in, self._workspaces)
            kept = [path for path in self._directory.iterdir() if path.name.endswith(_SUFFIX)]
            kept.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            # Nothing is awaited here: what is not held now is not about to be unpacked.
            for path in kept[_LAST:]:
                version_id = path.name.removesuffix(_SUFFIX)
                if version_id not in used and not self._held[version_id]:
                    path.unlink(missing_ok=True)
        except OSError:
            _log.exception("the archives in %s can't be pruned", self._directory)

    async def _fetch(self, template: Packed, path: Path) -> None:
        packed = bytearray()
        while len(packed) < template.archive.size:
            piece = await self._piece(template.version_id, len(packed))
            if not piece:
                break
            packed += piece
        if len(packed) != template.archive.size or _sha256(packed) != template.archive.sha256:
            raise BadArchive(
                f"the archive of version {template.version_id} is not what the job says"
            )
        write_atomically(path, bytes(packed))

    async def _piece(self, version_id: str, offset: int) -> bytes:
        backoff, request = Backoff(), {"version_id": version_id, "offset": offset}
        while True:
            try:
                answer = await self._bus.request(
                    subjects.rpc("template_archive"),
                    json.dumps(request).encode(),
                    timeout=_ANSWER_WITHIN,
                )
            except BusError as no:
                if is_final(no):
                    raise BadArchive(f"version {version_id} can't be fetched: {no}") from None
                level = logging.WARNING if isinstance(no, ServiceError) else logging.INFO
                _log.log(level, "version %s can't be fetched yet: %s", version_id, no)
            except TimeoutError as no:
                _log.info("version %s can't be fetched yet: %s", version_id, no)
            else:
                return answer.data
            await backoff.wait()


def is_unpacked(version_id: str, workspace: Path) -> bool:
    """Tell whether the workspace has that version's files."""
    try:
        return read_regular_file(workspace / OWN_FOLDER / _MARK, _ID_SIZE) == version_id.encode()
    except OSError:
        return False


def _versions_in(workspaces: Path) -> set[str]:
    """Return the versions that workspaces have; what one left in a mark's place is not waited for."""
    versions = set()
    with suppress(FileNotFoundError):
        for workspace in workspaces.iterdir():
            with suppress(OSError):
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                mark = os.open(workspace / OWN_FOLDER / _MARK, flags)
                try:
                    versions.add(os.read(mark, _ID_SIZE).decode(errors="replace"))
                finally:
                    os.close(mark)
    return versions


def unpack(archive: Path, version_id: str, workspace: Path) -> None:
    """Put the folder's files into the workspace, in place of those of the same name.

    Programs of the template may run in the workspace meanwhile. So the files are unpacked outside of it,
    and each folder that they are moved to is pinned. Raises BadArchive.
    """
    ensure_directory(workspace / OWN_FOLDER)
    staged = workspace.with_name(f".{workspace.name}{_STAGED}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(mode=0o700)
        with tarfile.open(archive, "r:gz") as packed:
            _extract(packed, staged)
        with (
            pinned_directory(workspace / OWN_FOLDER) as ours,
            pinned_directory(workspace) as target,
        ):
            if (manifest := staged / _MANIFEST).is_file():
                # Ours to read later, whatever becomes of the one in the workspace.
                write_atomically(ours / _MANIFEST, manifest.read_bytes())
            _merge(staged, target)
            write_atomically(ours / _MARK, version_id.encode())
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as bad:
        raise BadArchive(f"the template's folder can't be unpacked: {bad}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def sensitive_values(workspace: Path, parameters: Mapping[str, str]) -> list[str]:
    """Return the values that no log may show, as the unpacked template.toml marks them.

    `true` and `false` of a bool are no secrets: hiding them would hide nothing and spoil every log.
    The template.toml may be of another version than the job, so what it doesn't declare is hidden.
    """
    try:
        text = read_regular_file(workspace / OWN_FOLDER / _MANIFEST, _MANIFEST_SIZE).decode(
            "utf-8-sig"
        )
        plain = {
            parameter["name"]
            for parameter in tomllib.loads(text).get("parameter", [])
            if not parameter.get("sensitive") or parameter.get("type") == Kind.BOOL
        }
        return [value for name, value in parameters.items() if name not in plain]
    except FileNotFoundError:
        # A folder without a template.toml marks nothing; one that isn't unpacked could mark anything.
        unpacked = (workspace / OWN_FOLDER / _MARK).is_file()
        return [] if unpacked else list(parameters.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # What can't be read can't say that a value is harmless.
        return list(parameters.values())


def _extract(packed: tarfile.TarFile, into: Path) -> None:
    rules = FolderRules()
    for member in packed:
        if fault := rules.fault(member.name, _kind(member), member.size):
            raise BadArchive(fault)
        _write(packed, member, into / PurePosixPath(member.name))


def _kind(member: tarfile.TarInfo) -> EntryKind:
    if member.isdir():
        return EntryKind.FOLDER
    if member.issym() or member.islnk():
        return EntryKind.LINK
    return EntryKind.FILE if member.isreg() else EntryKind.OTHER


def _write(packed: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Create one file or folder at `target`, owned by this process.

    `TarFile.extract` is not used: Python before 3.11.4 has no filters to make it safe.
    """
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # as in every tar program, the last member of a name counts
    new = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(new, "wb") as file:
        if (content := packed.extractfile(member)) is not None:
            shutil.copyfileobj(content, file)
        file.flush()
        os.fchmod(new, _mode(member))
        with suppress(OSError, OverflowError):  # the archive may hold any number for a time
            os.utime(new, (member.mtime, member.mtime))


def _mode(member: tarfile.TarInfo) -> int:
    """Return a file's mode: executable by all or by nobody, and written by its owner only."""
    executable = 0o111 if member.mode & 0o100 else 0
    return member.mode & 0o044 | executable & member.mode | 0o600


def _merge(source: Path, target: Path) -> None:
    """Move everything over, file by file: never through a link that stands in the workspace.

    `target` is pinned.
    """
    with os.scandir(source) as entries:
        found = list(entries)
    for entry in found:
        there = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if there.is_symlink() or there.is_file():
                there.unlink()
            there.mkdir(exist_ok=True)
            with pinned_directory(there) as inner:
                _merge(Path(entry.path), inner)
                inner.chmod(entry.stat(follow_symlinks=False).st_mode & 0o7777)
        else:
            if there.is_dir() and not there.is_symlink():
                shutil.rmtree(there)
            Path(entry.path).replace(there)


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
