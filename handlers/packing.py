"""A template's folder as a version: read, checked and packed, the same folder always to the same bytes."""

from __future__ import annotations

import gzip
import io
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5

from statemachine.templates import TemplateError, Version, read, template_id

MAX_SIZE: Final = 16 * 1024 * 1024
"""Bytes of a packed folder."""
MANIFEST_SIZE: Final = 48 * 1024
"""Bytes of template.toml: an answer that lists ten templates, all escaped, still is one message."""
_LEFT_OUT: Final = (".git", "__pycache__", ".DS_Store")


def load(folder: Path, organization_id: str) -> tuple[Version, bytes]:
    """Read a template's folder; return its version and archive. Raises TemplateError."""
    file = folder / "template.toml"
    try:
        if (size := file.stat().st_size) > MANIFEST_SIZE:
            raise TemplateError(
                f"{file}: {size} bytes; at most {MANIFEST_SIZE} are taken. Scripts may lie beside it"
            )
        manifest = read(file.read_text("utf-8"), file=str(file))
    except FileNotFoundError:
        raise TemplateError(
            f"{file}: there is no such file; a template is a folder with one"
        ) from None
    except NotADirectoryError:
        raise TemplateError(f"{folder} is a file: name the folder, not the file") from None
    except OSError as bad:
        raise TemplateError(f"{file}: {bad.strerror}") from None
    except UnicodeDecodeError as bad:
        raise TemplateError(f"{file}: {bad}") from None
    readme_file = folder / "README.md"
    try:
        readme = readme_file.read_text("utf-8") if readme_file.is_file() else None
    except UnicodeDecodeError as bad:
        raise TemplateError(f"{readme_file}: not UTF-8 text: {bad}") from None
    if (readme is not None) and "\0" in readme:
        raise TemplateError(f"{readme_file}: contains a NUL character")
    archive = pack(folder)
    if len(archive) > MAX_SIZE:
        raise TemplateError(f"{folder}: {len(archive)} bytes packed; at most {MAX_SIZE} are taken")
    digest, identifier = sha256(archive).hexdigest(), template_id(organization_id, manifest.name)
    version_id = str(uuid5(UUID(identifier), digest))
    return Version(version_id, identifier, manifest, readme, digest, len(archive)), archive


def pack(folder: Path) -> bytes:
    """Pack a folder as tar.gz without times and owners. Raises TemplateError."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if any(part in _LEFT_OUT for part in relative.parts):
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise TemplateError(
                    f"{path}: only files and folders can be packed, no links or devices"
                )
            info = tar.gettarinfo(path, str(relative))
            info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
            info.mode = 0o755 if path.is_dir() or info.mode & 0o100 else 0o644
            if path.is_file():
                with path.open("rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)
    return gzip.compress(plain.getvalue(), mtime=0)
