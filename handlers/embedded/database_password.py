"""The password of the embedded PostgreSQL: one generated secret, kept as a pgpass file.

A template's code runs as the same user and can open the server's socket, so the socket alone must not
let anybody in. The file lies in the credentials directory, which confinement hides.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from handlers.embedded.socket_directory import PREFIX
from handlers.errors import EmbeddedError
from handlers.publishing.atomic_files import write_atomically

_FILE: Final = "database.pass"
_LINE: Final = re.compile(r"\*:5432:\*:\*:([A-Za-z0-9_-]+)\n?")
_ITERATIONS: Final = 4096
_SETTINGS: Final = (
    "&sslmode=disable&sslnegotiation=postgres&target_session_attrs=any"
    "&krbsrvname=postgres&gsslib=gssapi"
)
"""Every connection setting that asyncpg would otherwise take from a PG variable of the environment.

Host, port, database, user and password stand in the URL anyway."""


def password_file(credentials: Path) -> Path:
    """Return where the password lies: a file that libpq and asyncpg read as PGPASSFILE."""
    return credentials / _FILE


def folder_of(credentials: Path) -> Path:
    """Return the directory of credentials, of which somebody may have named a single seed file."""
    return credentials if credentials.is_dir() else credentials.parent


def read_password(credentials: Path) -> str | None:
    """Return the password, None when there is no file. Raises EmbeddedError."""
    path = password_file(credentials)
    try:
        found = _LINE.fullmatch(path.read_text("ascii", "replace"))
    except FileNotFoundError:
        return None
    if found is None:
        raise EmbeddedError(
            f"{path} does not hold the line `*:5432:*:*:PASSWORD`: delete it, and the next "
            "`workspaced up` makes a new one"
        )
    return found[1]


def made_password(credentials: Path) -> str:
    """Return the password; generate it first if there is none. Raises EmbeddedError."""
    if (there := read_password(credentials)) is not None:
        return there
    credentials.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(32)
    write_atomically(password_file(credentials), f"*:5432:*:*:{password}\n".encode())
    return password


def with_password(url: str, password: str | None) -> str:
    """Return a URL of the embedded server that connects whatever the environment says."""
    before, at, after = url.partition("@")
    secret = "" if password is None else f":{quote(password, safe='')}"
    return f"{before}{secret}{at}{after}{_SETTINGS}"


def without_password(url: str) -> str:
    """Return what `with_password` was given; any other URL stays as it is."""
    if not url.endswith(_SETTINGS):
        return url
    before, at, after = url.removesuffix(_SETTINGS).partition("@")
    scheme, slashes, user = before.partition("//")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{after}"


def completed(url: str, credentials: Path) -> str:
    """Return a URL that somebody gave; one of an embedded server gets the password of `credentials`.

    So the URL of the ready line, which has no password, works for commands and roles as it is.
    """
    try:
        parts = urlsplit(url)
        host = parse_qs(parts.query).get("host", [""])[-1]
        lacks = parts.username is not None and parts.password is None
    except ValueError:
        return url  # the database driver says what is wrong with it
    ours = host.startswith("/") and Path(host).name.startswith(PREFIX)
    if not (lacks and ours and "password=" not in parts.query):
        return url
    password = read_password(credentials)
    return url if password is None else with_password(url, password)


def verifier(password: str) -> str:
    """Return what the server keeps of a password: it can check the password, not tell it.

    Made here, so that no statement holds the password itself: a server may log statements.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    in_text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{in_text[0]}${in_text[1]}:{in_text[2]}"
