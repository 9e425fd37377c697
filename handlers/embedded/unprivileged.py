"""As whom PostgreSQL runs: it refuses root, so root needs a way to look like somebody else.

Preferred is a user namespace, in which the server sees itself as an ordinary user while its files
stay root's: no system user, and directories below a 0700 parent work. Where the machine refuses
namespaces, the system user `embedded_postgres` does it. Who owns the database's files is the record
of the way that was taken.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handlers.embedded.child import launched
from handlers.embedded.errors import NoUnprivilegedUser

SYSTEM_USER: Final = "embedded_postgres"
"""Runs PostgreSQL for root where user namespaces are refused."""


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom a program runs: options of `launch`, and whose its files are, seen from outside."""

    options: tuple[str, ...]
    uid: int
    gid: int


def identity_for(data: Path, program: Path) -> Identity:
    """Choose as whom `program` runs on the directory `data`, which may not be there yet.

    Raises NoUnprivilegedUser.
    """
    owner = data.stat().st_uid if data.exists() else None
    if (us := os.geteuid()) != 0:
        if owner in (None, us):
            return Identity((), us, os.getegid())
    elif owner in (None, 0):
        namespace = Identity(("--namespace",), 0, os.getegid())
        refusal = _refusal(namespace, program)
        if refusal is None:
            return namespace
        if owner is None:
            return _system_user(data, program, refusal)
        raise NoUnprivilegedUser(
            f"{data} was made in a user namespace, which now fails ({refusal}): mend that (see "
            f"sysctl user.max_user_namespaces), or run as an ordinary user with another --data-dir"
        )
    elif _name(owner) == SYSTEM_USER:
        return _system_user(data, program, "the data directory is that user's")
    raise NoUnprivilegedUser(
        f"{data} belongs to {_name(owner)}: run as that user, or choose another --data-dir"
    )


def _system_user(data: Path, program: Path, why: str) -> Identity:
    try:
        user = _made_user()
    except (OSError, subprocess.SubprocessError) as error:
        raise NoUnprivilegedUser(
            f"PostgreSQL can't run as root; a user namespace failed ({why}), and so did making the "
            f"system user {SYSTEM_USER} ({error}): run as an ordinary user"
        ) from error
    if not data.parent.stat().st_mode & stat.S_IXOTH:
        data.parent.chmod(0o711)  # the data directory itself is ours; those above it are not
    for path in (data, program):
        if (closed := _first_closed(path, user)) is not None:
            raise NoUnprivilegedUser(
                f"PostgreSQL would run as the system user {SYSTEM_USER} ({why}), who can't pass "
                f"{closed} on the way to {path}: open that to others (chmod o+x), choose another "
                f"place, or run as an ordinary user"
            )
    identity = Identity(("--user", str(user.pw_uid), str(user.pw_gid)), user.pw_uid, user.pw_gid)
    if (refusal := _refusal(identity, program)) is not None:
        raise NoUnprivilegedUser(
            f"{program} does not run as the system user {SYSTEM_USER} ({refusal}; {why}): "
            f"run as an ordinary user"
        )
    return identity


def _made_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin") or "useradd"
        subprocess.run(  # noqa: S603 — ours
            [useradd, "--system", "--user-group", "--no-create-home", SYSTEM_USER],
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(SYSTEM_USER)


def _first_closed(path: Path, user: pwd.struct_passwd) -> Path | None:
    """Return the topmost directory above `path` that `user` may not pass."""
    for directory in reversed(path.parents):
        if not directory.exists():
            return None
        about = directory.stat()
        if about.st_uid == user.pw_uid:
            bit = stat.S_IXUSR
        elif about.st_gid == user.pw_gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not about.st_mode & bit:
            return directory
    return None


def _refusal(identity: Identity, program: Path) -> str | None:
    """Try the identity with a harmless call of the program itself; return what went wrong."""
    command = launched([program, "--version"], farewell=signal.SIGKILL, identity=identity.options)
    tried = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 — ours
    if tried.returncode == 0:
        return None
    return tried.stderr.strip() or f"status {tried.returncode}"


def _name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid or 0).pw_name
    except KeyError:
        return f"uid {uid}"
