"""Templates on their way into workspaces: fetching and caching archives, and merging their files safely.

The files are merged into a workspace in which programs of an earlier build may still run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import tarfile
import tomllib
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from workspaced.provisioning.link import Link
from workspaced.provisioning.templates import BadTemplate, fetch_archive

from handlers.provisioner.job import Packed
from handlers.publishing.agent_files import OWN_FOLDER
from handlers.publishing.atomic_files import (
    ensure_directory,
    pinned_directory,
    read_regular_file,
    write_atomically,
)
from handlers.template_archive import BadArchive, extract
from statemachine.parameters import Kind

_MANIFEST: Final = "template.toml"
_MANIFEST_SIZE: Final = 1024 * 1024
_VERSION_FILE: Final = "template"
_SUFFIX: Final = ".tar.gz"
_STAGING_SUFFIX: Final = ".unpacked"
"""Suffix of the folder next to a workspace into which a template is extracted first."""
_UNUSED_KEPT: Final = 8
"""Number of most recently used archives that are kept although no workspace here has their version."""
_ID_SIZE: Final = 64

_log = logging.getLogger(__name__)


class Archives:
    """The archives that this machine has fetched, by version; a version never changes."""

    def __init__(self, link: Link, directory: Path, workspaces: Path) -> None:
        self._link, self._directory, self._workspaces = link, directory, workspaces
        self._in_use: Counter[str] = Counter()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in workspaces.glob(
            f".*{_STAGING_SUFFIX}"
        ):  # left by a provisioner that was killed
            shutil.rmtree(left, ignore_errors=True)

    @asynccontextmanager
    async def fetched(self, template: Packed) -> AsyncIterator[Path]:
        """Yield the checked archive, fetched if necessary, and keep it until the end. Raises BadArchive."""
        path = self._directory / f"{template.version_id}{_SUFFIX}"
        self._in_use[template.version_id] += 1
        try:
            if path.exists() and _sha256(path.read_bytes()) == template.archive.sha256:
                os.utime(path)
            else:
                await self._fetch(template, path)
                await self.prune()
            yield path
        finally:
            self._in_use[template.version_id] -= 1

    async def prune(self) -> None:
        """Delete archives, except those of versions that workspaces here have and the most recently used."""
        try:
            used = await asyncio.to_thread(_versions_in, self._workspaces)
            kept = [path for path in self._directory.iterdir() if path.name.endswith(_SUFFIX)]
            kept.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            # No await from here on: an archive that is not in use now is not about to be extracted.
            for path in kept[_UNUSED_KEPT:]:
                version_id = path.name.removesuffix(_SUFFIX)
                if version_id not in used and not self._in_use[version_id]:
                    path.unlink(missing_ok=True)
        except OSError:
            _log.exception("the archives in %s can't be pruned", self._directory)

    async def _fetch(self, template: Packed, path: Path) -> None:
        archive = template.archive
        try:
            packed = await fetch_archive(
                self._link, template.version_id, archive.sha256, archive.size
            )
        except BadTemplate as error:
            raise BadArchive(str(error)) from None
        write_atomically(path, packed)


def is_unpacked(version_id: str, workspace: Path) -> bool:
    """Return whether the workspace has the files of that version."""
    try:
        return (
            read_regular_file(workspace / OWN_FOLDER / _VERSION_FILE, _ID_SIZE)
            == version_id.encode()
        )
    except OSError:
        return False


def _versions_in(workspaces: Path) -> set[str]:
    """Return the versions of all workspaces. A FIFO in place of a version file does not block."""
    versions = set()
    with suppress(FileNotFoundError):
        for workspace in workspaces.iterdir():
            with suppress(OSError):
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                mark = os.open(workspace / OWN_FOLDER / _VERSION_FILE, flags)
                try:
                    versions.add(os.read(mark, _ID_SIZE).decode(errors="replace"))
                finally:
                    os.close(mark)
    return versions


def unpack(archive: Path, version_id: str, workspace: Path) -> None:
    """Put the template's files into the workspace; files of the same name are replaced.

    Programs may run in the workspace at the same time. So the archive is extracted next to it, and every
    folder into which files are moved is pinned. Raises BadArchive.

    """
    ensure_directory(workspace / OWN_FOLDER)
    staged = workspace.with_name(f".{workspace.name}{_STAGING_SUFFIX}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(mode=0o700)
        with tarfile.open(archive, "r:gz") as packed:
            extract(packed, staged)
        with (
            pinned_directory(workspace / OWN_FOLDER) as ours,
            pinned_directory(workspace) as target,
        ):
            if (manifest := staged / _MANIFEST).is_file():
                # A copy to read later: programs in the workspace may change the other one.
                write_atomically(ours / _MANIFEST, manifest.read_bytes())
            _merge(staged, target)
            write_atomically(ours / _VERSION_FILE, version_id.encode())
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as error:
        raise BadArchive(f"the template's folder can't be unpacked: {error}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def sensitive_values(workspace: Path, parameters: Mapping[str, str]) -> list[str]:
    """Return the values that no log may show, as the unpacked template.toml declares them.

    `true` and `false` of a bool are not secret: to mask them would hide nothing and make logs unreadable.
    The template.toml may be of another version than the job, so values that it does not declare are hidden.

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
        # A folder without template.toml declares nothing; one that isn't unpacked could declare anything.
        unpacked = (workspace / OWN_FOLDER / _VERSION_FILE).is_file()
        return [] if unpacked else list(parameters.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # A template.toml that can't be read can't declare a value harmless.
        return list(parameters.values())


def _merge(source: Path, target: Path) -> None:
    """Move everything from `source` to `target`, which is pinned, without following links in the workspace."""
    with os.scandir(source) as entries:
        found = list(entries)
    for entry in found:
        destination = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if destination.is_symlink() or destination.is_file():
                destination.unlink()
            destination.mkdir(exist_ok=True)
            with pinned_directory(destination) as inner:
                _merge(Path(entry.path), inner)
                inner.chmod(entry.stat(follow_symlinks=False).st_mode & 0o7777)
        else:
            if destination.is_dir() and not destination.is_symlink():
                shutil.rmtree(destination)
            Path(entry.path).replace(destination)


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
