"""Which user PostgreSQL runs as: it refuses to run as root, so root has to change it to another user.

There are three ways, each tried with the program and the directories themselves:

- as the user that we are, unless that is root;
- in a user namespace, in which our own uid looks like another user's. The files stay ours;
- for root, as the system user `nobody`, who keeps the power to pass and write every directory
  (CAP_DAC_OVERRIDE), so that a clone or a data directory below /root works. The database's files
  become that user's. Containers forbid user namespaces, but let root do this.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from handlers.embedded.child import launched
from handlers.errors import NoUnprivilegedUser

_USERS: Final = ("nobody", "embedded_postgres")
"""Users that root runs PostgreSQL as; earlier versions created the second."""
_NO_ENTRY: Final = 65_534
"""The uid that is used on a machine without any user but root."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A way to run PostgreSQL."""

    way: str
    """In words, for messages."""
    options: tuple[str, ...]
    """For `launch`."""
    uid: int
    """The owner of its files, as we see it."""
    gid: int
    seen: int
    """The uid that the program sees itself as."""

    @property
    def has_entry(self) -> bool:
        """Tell whether the program finds its own user in /etc/passwd, which initdb insists on."""
        return _entry(self.seen) is not None


class _User(NamedTuple):
    name: str
    uid: int
    gid: int


def identity_for(data: Path, program: Path, *directories: Path) -> Identity:
    """Choose how to run `program` on the database in `data`, which need not exist yet.

    The program will also write in each of `directories`. Raises NoUnprivilegedUser.
    """
    us, owner = os.geteuid(), data.stat().st_uid if data.exists() else None
    ours = (us, *(user.uid for user in _users())) if us == 0 else (us,)
    if owner is not None and owner not in ours:
        raise NoUnprivilegedUser(
            f"{data} belongs to {_name(owner)}: run as that user, or choose another --data-dir"
        )
    # Files that need not change their owner are best left as they are.
    ways = sorted(_ways(us, is_new=owner is None), key=lambda way: way.uid != owner)
    refusals = []
    for way in ways:
        refusal = _refusal(way, program, (data.parent, *directories))
        if refusal is None:
            return way
        refusals.append(f"{way.way}: {refusal}")
    raise NoUnprivilegedUser(
        f"PostgreSQL can't run here; {'; '.join(refusals)}. PostgreSQL refuses to run as root, so "
        f"root needs user namespaces (see sysctl user.max_user_namespaces) or the capabilities "
        f"CHOWN, KILL, SETUID, SETGID and DAC_OVERRIDE. Provide one of these, or run workspaced as an "
        f"ordinary user who may read {program}"
        if us == 0
        else f"PostgreSQL can't run here; {'; '.join(refusals)}. Make {program} readable and "
        f"{data.parent} writable for {_name(us)}"
    )


def hand_over(data: Path, identity: Identity) -> None:
    """Make all files of a database the identity's; the directory itself comes last, as the record.

    Raises NoUnprivilegedUser.
    """
    if data.lstat().st_uid == identity.uid:
        return
    try:
        for directory, folders, files in os.walk(data, topdown=False):
            for name in (*folders, *files):
                os.lchown(Path(directory, name), identity.uid, identity.gid)
        os.chown(data, identity.uid, identity.gid)
    except OSError as error:
        raise NoUnprivilegedUser(
            f"the files in {data} can't be given to {_name(identity.uid)}, as whom PostgreSQL has "
            f"to run here ({error})"
        ) from error


def _ways(us: int, *, is_new: bool) -> Iterator[Identity]:
    gid = os.getegid()
    itself = Identity("as this user", (), us, gid, us)
    # An existing database does without the entry that initdb insists on.
    if us != 0 and (itself.has_entry or not is_new):
        yield itself
        return
    users = _users()
    seen = users[0].uid
    yield Identity("in a user namespace", ("--namespace", str(seen)), us, gid, seen)
    if us != 0:
        yield itself
    for user in users if us == 0 else ():
        options = ("--user", str(user.uid), str(user.gid))
        yield Identity(f"as the user {user.name}", options, user.uid, user.gid, user.uid)


def _users() -> list[_User]:
    """Return the users that stand in for root, or whom we look like in a namespace."""
    entries = [entry for name in _USERS if (entry := _entry(name)) is not None]
    entries = entries or [entry for entry in pwd.getpwall() if entry.pw_uid != 0][:1]
    found = [_User(entry.pw_name, entry.pw_uid, entry.pw_gid) for entry in entries]
    return found or [_User(f"uid {_NO_ENTRY}", _NO_ENTRY, _NO_ENTRY)]


def _refusal(identity: Identity, program: Path, directories: tuple[Path, ...]) -> str | None:
    """Try the identity with a harmless call of the program itself; return what went wrong."""
    options = [
        *identity.options,
        *(word for path in directories for word in ("--writes", str(path))),
    ]
    command = launched([program, "--version"], farewell=signal.SIGKILL, identity=options)
    tried = subprocess.run(  # noqa: S603 — ours
        command, check=False, capture_output=True, text=True, cwd="/"
    )
    if tried.returncode == 0:
        return None
    return tried.stderr.strip() or f"status {tried.returncode}"


def _entry(user: int | str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        return None


def _name(uid: int) -> str:
    return f"uid {uid}" if (entry := _entry(uid)) is None else entry.pw_name
