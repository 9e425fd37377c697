"""The data directory's NKeys: one seed for each static role, and the one that signs grants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handlers.access import nkey
from handlers.access.permissions import ROLES
from handlers.errors import EmbeddedError
from handlers.publishing.atomic_files import write_atomically

ISSUER: Final = "issuer"
"""The account key with which the gateway signs what it grants to agents and frontends."""


@dataclass(frozen=True, slots=True)
class Identities:
    """Public keys, by role and of the issuer; `directory` holds their seeds."""

    directory: Path
    roles: dict[str, str]
    issuer: str


def identities(data_directory: Path) -> Identities:
    """Read the seeds, after making those that are not there yet.

    Raises EmbeddedError when a file holds no seed.
    """
    directory = credentials_of(data_directory)
    directory.mkdir(mode=0o700, exist_ok=True)
    return Identities(
        directory=directory,
        roles={role: _public_key(seed_file(directory, role), "user") for role in ROLES},
        issuer=_public_key(seed_file(directory, ISSUER), "account"),
    )


def credentials_of(data_directory: Path) -> Path:
    """Return the directory of the seeds."""
    return data_directory / "credentials"


def seed_file(credentials: Path, role: str) -> Path:
    """Return where the role's seed lies."""
    return credentials / f"{role}.nk"


def _public_key(path: Path, kind: nkey.Kind) -> str:
    if not path.exists():
        # No line end follows it: some clients hand the file to the decoder as it is.
        write_atomically(path, nkey.new_seed(kind).encode())
    try:
        return nkey.public_key(path.read_text().strip())
    except (nkey.InvalidSeed, UnicodeDecodeError) as error:
        raise EmbeddedError(
            f"{path} holds no NKey seed ({error}): restore it, or delete it to get a new one"
        ) from error
