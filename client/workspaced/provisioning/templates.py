"""A template's folder as its jobs name it: fetched once, checked, unpacked, and what in it is sensitive."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tarfile
import tempfile
import tomllib
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final
from uuid import UUID

from workspaced.errors import WorkspacedError
from workspaced.provisioning.link import Link

_KEPT: Final = 16
"""Archives kept on disk, the most recently used ones."""
_LARGEST: Final = 16 * 1024 * 1024
_LARGEST_UNPACKED: Final = 512 * 1024 * 1024
_MOST_ENTRIES: Final = 20_000
_MANIFEST: Final = "template.toml"
_MANIFEST_SIZE: Final = 1024 * 1024
_DECLARED_WITHIN: Final = 10.0
"""Seconds that a build waits to learn which of its parameters are sensitive."""


class BadTemplate(Exception):
    """A template's folder can't be fetched, or must not be unpacked."""


class Templates:
    """The archives that this provisioner has fetched, by version; a version never changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def fetched(self, link: Link, version_id: str, sha256: str, size: int) -> Path:
        """Return the checked archive, fetched if it is not there. Raises BadTemplate."""
        path = self._directory / f"{UUID(version_id)}.tar.gz"
        with suppress(OSError):
            if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                os.utime(path)
                return path
        packed = await fetch_archive(link, version_id, sha256, size)
        # A name of its own: builds side by side may fetch the same version.
        with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
            file.write(packed)
        Path(file.name).replace(path)  # noqa: ASYNC240 — a local file
        self._prune()
        return path

    async def sensitive_values(
        self, link: Link, archive: tuple[str, str, int] | None, parameters: Mapping[str, str]
    ) -> list[str]:
        """Return the values that no text may show; all of them if the template does not say.

        `true` and `false` of a bool are not secret: to hide them would make logs unreadable.
        """
        if not parameters:
            return []
        if archive is None:
            return list(parameters.values())
        try:
            async with asyncio.timeout(_DECLARED_WITHIN):
                path = await self.fetched(link, *archive)
            plain = await asyncio.to_thread(_plain_parameters, path)
        except (BadTemplate, OSError, TimeoutError):
            return list(parameters.values())
        return [value for name, value in parameters.items() if name not in plain]

    def _prune(self) -> None:
        with suppress(OSError):
            kept = sorted(
                self._directory.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime_ns
            )
            for path in kept[:-_KEPT]:
                path.unlink(missing_ok=True)


async def fetch_archive(link: Link, version_id: str, sha256: str, size: int) -> bytes:
    """Fetch the archive of a template's version in pieces, and check it. Raises BadTemplate."""
    if size > _LARGEST:
        raise BadTemplate(f"the archive of version {version_id} has {size} bytes")
    packed = bytearray()
    while len(packed) < size:
        request = {"version_id": version_id, "offset": len(packed)}
        try:
            piece = await link.rpc_until_answered("template_archive", request)
        except WorkspacedError as error:
            raise BadTemplate(f"version {version_id} can't be fetched: {error}") from None
        if not piece:
            break
        packed += piece
    if len(packed) != size or hashlib.sha256(packed).hexdigest() != sha256:
        raise BadTemplate(
            f"the archive of version {version_id} has not the size and SHA-256 of the job"
        )
    return bytes(packed)


def unpack(archive: Path, directory: Path) -> None:
    """Put a template's files into a directory, replacing files of the same name. Raises BadTemplate.

    Nothing is written outside of the directory: links are neither created nor followed, even if
    programs work in the directory at the same time.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(
            dir=directory.parent, prefix=f".{directory.name}."
        ) as name:
            staged = Path(name)
            with tarfile.open(archive, "r:gz") as packed:
                _extract(packed, staged)
            source = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
            try:
                target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _merge(source, target)
                finally:
                    os.close(target)
            finally:
                os.close(source)
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as error:
        raise BadTemplate(f"the template's folder can't be unpacked: {error}") from None


def _extract(packed: tarfile.TarFile, staged: Path) -> None:
    size = 0
    for count, entry in enumerate(packed):
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts:
            raise BadTemplate(f"{entry.name!r} leads out of the folder")
        if not (entry.isfile() or entry.isdir()):
            raise BadTemplate(f"{entry.name!r} is neither a file nor a folder")
        size += entry.size
        if size > _LARGEST_UNPACKED or count >= _MOST_ENTRIES:
            raise BadTemplate("the template's folder is too large")
        place = staged / path
        if entry.isdir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        content = packed.extractfile(entry)
        if content is not None:
            with place.open("wb") as file:
                shutil.copyfileobj(content, file)
        place.chmod(0o755 if entry.mode & 0o111 else 0o644)


def _merge(source: int, target: int) -> None:
    """Move everything from one open folder to another one, without following links."""
    with os.scandir(source) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for name, is_folder in found:
        if not is_folder:
            with suppress(IsADirectoryError):
                os.replace(name, name, src_dir_fd=source, dst_dir_fd=target)
                continue
            shutil.rmtree(name, dir_fd=target)
            os.replace(name, name, src_dir_fd=source, dst_dir_fd=target)
            continue
        try:
            os.mkdir(name, dir_fd=target)
        except FileExistsError:
            try:
                os.close(os.open(name, flags, dir_fd=target))
            except (NotADirectoryError, OSError):
                os.unlink(name, dir_fd=target)
                os.mkdir(name, dir_fd=target)
        inner_source = os.open(name, flags, dir_fd=source)
        try:
            inner_target = os.open(name, flags, dir_fd=target)
            try:
                _merge(inner_source, inner_target)
            finally:
                os.close(inner_target)
        finally:
            os.close(inner_source)


def _plain_parameters(archive: Path) -> set[str]:
    """Return the names of the parameters that may be shown; none if the template can't be read."""
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for entry in packed:
                if PurePosixPath(entry.name) == PurePosixPath(_MANIFEST) and entry.isfile():
                    content = packed.extractfile(entry)
                    text = b"" if content is None else content.read(_MANIFEST_SIZE)
                    declared = tomllib.loads(text.decode("utf-8-sig")).get("parameter", [])
                    return {
                        one["name"]
                        for one in declared
                        if not one.get("sensitive") or one.get("type") == "bool"
                    }
    except (
        tarfile.TarError,
        zlib.error,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):
        pass
    return set()
