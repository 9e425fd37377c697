"""A template's folder on its way into a workspace: fetched, checked, unpacked where nothing escapes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tarfile
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from bus import Bus, NoResponder, ServiceError, Unavailable, subjects
from handlers.agent_files import OURS
from handlers.provisioner.job import TemplateRef
from handlers.sending import Backoff
from handlers.sending.disk import write_whole

_MANIFEST: Final = "template.toml"
_MARK: Final = "template"
_ANSWER_WITHIN: Final = 5.0
_UNPACKED: Final = 512 * 1024 * 1024
_MEMBERS: Final = 20_000
_CLIENT_ERRORS: Final = range(400, 500)
_BUSY: Final = 429

_log = logging.getLogger(__name__)


class BadArchive(Exception):
    """The template's archive can't be had, or must not be unpacked."""


class Archives:
    """The archives that this machine has fetched, by version: a version never changes."""

    def __init__(self, bus: Bus, directory: Path) -> None:
        self._bus, self._directory = bus, directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def get(self, template: TemplateRef) -> Path:
        """Return the checked archive, fetched unless it is there. Raises BadArchive."""
        path = self._directory / f"{template.version_id}.tar.gz"
        if path.exists() and _sha256(path.read_bytes()) == template.archive.sha256:
            return path
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
        write_whole(path, bytes(packed))
        return path

    async def _piece(self, version_id: str, offset: int) -> bytes:
        backoff, request = Backoff(), {"version_id": version_id, "offset": offset}
        while True:
            try:
                answer = await self._bus.request(
                    subjects.rpc("template_archive"),
                    json.dumps(request).encode(),
                    timeout=_ANSWER_WITHIN,
                )
            except ServiceError as no:
                if no.code in _CLIENT_ERRORS and no.code != _BUSY:
                    raise BadArchive(f"version {version_id} can't be fetched: {no}") from None
                _log.warning("version %s can't be fetched yet: %s", version_id, no)
            except (NoResponder, Unavailable, TimeoutError) as no:
                _log.info("version %s can't be fetched yet: %s", version_id, no)
            else:
                return answer.data
            await backoff.wait()


def is_unpacked(version_id: str, workspace: Path) -> bool:
    """Tell whether the workspace has that version's files."""
    mark = workspace / OURS / _MARK
    return mark.exists() and mark.read_text() == version_id


def unpack(archive: Path, version_id: str, workspace: Path) -> None:
    """Put the folder's files into the workspace, in place of those of the same name.

    Raises BadArchive.
    """
    ours = workspace / OURS
    ours.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = ours / "unpacked"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    try:
        with tarfile.open(archive, "r:gz") as packed:
            _extract(packed, staged)
        if (manifest := staged / _MANIFEST).is_file():
            # Ours to read later, whatever becomes of the one in the workspace.
            write_whole(ours / _MANIFEST, manifest.read_bytes())
        _merge(staged, workspace)
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as bad:
        raise BadArchive(f"the template's folder can't be unpacked: {bad}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    write_whole(ours / _MARK, version_id.encode())


def sensitive_values(workspace: Path, parameters: Mapping[str, str]) -> list[str]:
    """Return the values that no log may show, as the unpacked template.toml marks them."""
    try:
        declared = tomllib.loads((workspace / OURS / _MANIFEST).read_text())
        return [
            parameters[parameter["name"]]
            for parameter in declared.get("parameter", [])
            if parameter.get("sensitive") and parameter["name"] in parameters
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # What can't be read can't say that a value is harmless.
        return list(parameters.values())


def _extract(packed: tarfile.TarFile, into: Path) -> None:
    links: set[PurePosixPath] = set()
    total = 0
    for count, member in enumerate(packed, 1):
        path = PurePosixPath(member.name)
        total += member.size
        if count > _MEMBERS or total > _UNPACKED:
            raise BadArchive("the template's folder is too large when unpacked")
        if path.is_absolute() or ".." in path.parts:
            raise BadArchive(f"{member.name!r} leads out of the folder")
        if path.parts and path.parts[0] == OURS:
            raise BadArchive(f"{member.name!r}: the folder {OURS} belongs to workspaced")
        if links.intersection((path, *path.parents)):
            raise BadArchive(f"{member.name!r} is written through a link")
        if member.issym():
            links.add(path)
        # The rest is Python's: links that lead out, devices, pipes, modes, owners.
        packed.extract(member, into, filter=_checked)


def _checked(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo | None:
    checked: Any = tarfile.data_filter(member, into)
    return checked  # type: ignore[no-any-return]


def _merge(source: Path, target: Path) -> None:
    """Move everything over, file by file: never through a link that stands in the workspace."""
    for entry in os.scandir(source):
        there = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if there.is_symlink() or there.is_file():
                there.unlink()
            there.mkdir(exist_ok=True)
            _merge(Path(entry.path), there)
            there.chmod(entry.stat(follow_symlinks=False).st_mode & 0o7777)
        else:
            if there.is_dir() and not there.is_symlink():
                shutil.rmtree(there)
            Path(entry.path).replace(there)


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
