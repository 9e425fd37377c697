"""The NKeys of a data directory: one for each static role, and that of the issuer, which signs grants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handlers.access import nkey
from handlers.access.permissions import ROLES
from handlers.errors import EmbeddedError
from handlers.publishing.atomic_files import write_atomically

ISSUER: Final = "issuer"
"""The account key with which the gateway signs its answers to nats-server's auth callout."""


@dataclass(frozen=True, slots=True)
class Identities:
    """The public keys of the static roles and of the issuer, and the directory of their seeds."""

    directory: Path
    roles: dict[str, str]
    issuer: str


def load_identities(data_directory: Path) -> Identities:
    """Read the seed files of a data directory, and generate those that are missing.

    Raises EmbeddedError if a file contains no NKey seed.
    """
    directory = credentials_directory(data_directory)
    directory.mkdir(mode=0o700, exist_ok=True)
    return Identities(
        directory=directory,
        roles={role: _public_key(seed_file(directory, role), "user") for role in ROLES},
        issuer=_public_key(seed_file(directory, ISSUER), "account"),
    )


def credentials_directory(data_directory: Path) -> Path:
    """Return the directory that contains the seed files of a data directory."""
    return data_directory / "credentials"


def seed_file(credentials: Path, role: str) -> Path:
    """Return the path of a role's seed file."""
    return credentials / f"{role}.nk"


def _public_key(path: Path, kind: nkey.KeyKind) -> str:
    if not path.exists():
        # Without a line end, because some clients decode the file's content as it is.
        write_atomically(path, nkey.new_seed(kind).encode())
    try:
        return nkey.public_key(path.read_text().strip())
    except (nkey.InvalidSeed, UnicodeDecodeError) as error:
        raise EmbeddedError(
            f"{path} contains no NKey seed ({error}): restore it, or delete it to generate a new key"
        ) from error
