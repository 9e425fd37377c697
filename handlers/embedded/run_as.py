"""The user that PostgreSQL runs as, and what depends on that user: its programs and its socket directory.

PostgreSQL refuses to run as root. There are three ways to run it, and each is tried with the program and
the directories themselves:

- as the current user, unless that is root;
- in a user namespace, in which the current uid appears as another uid. The files keep their owner;
- if the current user is root: as `nobody`, with the capability CAP_DAC_OVERRIDE, so that it can reach an
  installation or a data directory below /root. The database's files are given to that user. Containers
  usually forbid user namespaces but allow this.

initdb, and PostgreSQL in single-user mode, look up the name of their user in /etc/passwd and fail if it has no
entry, although they do not need the name. Container platforms run programs as such users. For them,
`programs_for` makes copies of the two programs that call getpwent() instead of getpwuid(), which finds the
name of some user. The server itself never looks it up.

The path of a unix socket has at most 107 bytes, so the socket is in a directory with a short path
(`socket_directory`) rather than in the data directory.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from handlers.embedded.child import launch_command
from handlers.errors import EmbeddedError, NoUnprivilegedUser

_USERS: Final = ("nobody", "embedded_postgres")
"""Users that PostgreSQL runs as if workspaced runs as root. Earlier versions created the second."""
_NO_ENTRY: Final = 65_534
"""The uid on a machine whose only user is root."""

_PROGRAMS: Final = ("initdb", "postgres")
_LOOKUP: Final = b"\0getpwuid\0"
_REPLACEMENT: Final = b"\0getpwent\0"

SOCKET: Final = ".s.PGSQL.5432"
"""The name that PostgreSQL gives its socket."""
SOCKET_PREFIX: Final = "workspaced-"
"""The prefix of the names of socket directories."""

_MAX_PATH: Final = 107
_PRIVATE: Final = 0o700
_SHARED_DIRECTORIES: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 — a directory there is checked for its owner


@dataclass(frozen=True, slots=True)
class ServerUser:
    """A way to run PostgreSQL: the user, and the options of `launch` that it needs."""

    way: str
    """A description for messages."""
    options: tuple[str, ...]
    """Options of `launch`."""
    uid: int
    """The owner of the database's files."""
    gid: int
    seen: int
    """The uid that the program sees as its own."""

    @property
    def has_entry(self) -> bool:
        """Whether /etc/passwd has an entry for the program's user, which initdb requires."""
        return _entry(self.seen) is not None


class _User(NamedTuple):
    name: str
    uid: int
    gid: int


def choose_user(data: Path, program: Path, *directories: Path) -> ServerUser:
    """Choose how to run `program` on the database in `data`, which need not exist yet.

    The program also has to write to `directories`. Raises NoUnprivilegedUser.
    """
    us, owner = os.geteuid(), data.stat().st_uid if data.exists() else None
    ours = (us, *(user.uid for user in _users())) if us == 0 else (us,)
    if owner is not None and owner not in ours:
        raise NoUnprivilegedUser(
            f"{data} belongs to {_name(owner)}: run as that user, or choose another --data-dir"
        )
    # Prefer a way that does not change the owner of the files.
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
        f"ordinary user who can read {program}"
        if us == 0
        else f"PostgreSQL can't run here; {'; '.join(refusals)}. Make {program} readable and "
        f"{data.parent} writable for {_name(us)}"
    )


def change_owner(data: Path, user: ServerUser) -> None:
    """Give all files of a database to the user that PostgreSQL runs as.

    The directory itself is last, so its owner shows that the change was completed. Raises NoUnprivilegedUser.
    """
    if data.lstat().st_uid == user.uid:
        return
    try:
        for directory, folders, files in os.walk(data, topdown=False):
            for name in (*folders, *files):
                os.lchown(Path(directory, name), user.uid, user.gid)
        os.chown(data, user.uid, user.gid)
    except OSError as error:
        raise NoUnprivilegedUser(
            f"the files in {data} can't be given to {_name(user.uid)}, the user that PostgreSQL has "
            f"to run as here ({error})"
        ) from error


def _ways(us: int, *, is_new: bool) -> Iterator[ServerUser]:
    gid = os.getegid()
    itself = ServerUser("as this user", (), us, gid, us)
    # Only initdb needs an entry in /etc/passwd, so an existing database works without one.
    if us != 0 and (itself.has_entry or not is_new):
        yield itself
        return
    users = _users()
    seen = users[0].uid
    yield ServerUser("in a user namespace", ("--namespace", str(seen)), us, gid, seen)
    if us != 0:
        yield itself
    for user in users if us == 0 else ():
        options = ("--user", str(user.uid), str(user.gid))
        yield ServerUser(f"as the user {user.name}", options, user.uid, user.gid, user.uid)


def _users() -> list[_User]:
    """Return the users to run as instead of root, or to appear as in a user namespace."""
    entries = [entry for name in _USERS if (entry := _entry(name)) is not None]
    entries = entries or [entry for entry in pwd.getpwall() if entry.pw_uid != 0][:1]
    found = [_User(entry.pw_name, entry.pw_uid, entry.pw_gid) for entry in entries]
    return found or [_User(f"uid {_NO_ENTRY}", _NO_ENTRY, _NO_ENTRY)]


def _refusal(user: ServerUser, program: Path, directories: tuple[Path, ...]) -> str | None:
    """Try to run `program --version` this way; return the error message, or None if it works."""
    options = [
        *user.options,
        *(word for path in directories for word in ("--writes", str(path))),
    ]
    command = launch_command([program, "--version"], stop_signal=signal.SIGKILL, run_as=options)
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


@contextmanager
def programs_for(user: ServerUser, binaries: Path, place: Path) -> Iterator[Path]:
    """Yield a directory of PostgreSQL's programs that work for a user.

    Copies are made in the directory `place` and removed at the end. Raises EmbeddedError.
    """
    if user.has_entry:
        yield binaries
        return
    copies = place / "postgres.programs"
    try:
        try:
            programs = _copy_programs(binaries, copies)
        except OSError as error:
            raise EmbeddedError(f"{copies} can't be created: {error}") from error
        yield programs
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def _copy_programs(binaries: Path, place: Path) -> Path:
    """Copy the programs into a tree of links that looks like the installation.

    The programs find their libraries and data files relative to their own path.
    """
    shutil.rmtree(place, ignore_errors=True)
    package = binaries.parents[1]
    copies = place / binaries.relative_to(package.parent)
    copies.mkdir(parents=True)
    for path in package.parent.glob(f"{package.name}.*"):
        (place / path.name).symlink_to(path)
    for path in binaries.parent.iterdir():
        if path != binaries:
            (copies.parent / path.name).symlink_to(path)
    for name in _PROGRAMS:
        program = (binaries / name).read_bytes()
        if program.count(_LOOKUP) != 1:
            raise EmbeddedError(
                f"PostgreSQL's {name} needs an entry in /etc/passwd for the user of this process: "
                f"add one, or run workspaced as a user who has one"
            )
        (copies / name).write_bytes(program.replace(_LOOKUP, _REPLACEMENT))
        (copies / name).chmod(0o700)
    return copies


def socket_directory(data: Path) -> Path:
    """Create the directory for the socket of the database in `data`, with mode 0700, and return it.

    It belongs to the current user, also when PostgreSQL runs as another user: PostgreSQL can enter it all
    the same, but other processes of that user cannot. Raises EmbeddedError.
    """
    mark = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    name = f"{SOCKET_PREFIX}{os.geteuid()}-{mark}"
    refusals = []
    for place in _places(data):
        directory = place / name
        if len(os.fsencode(directory / SOCKET)) > _MAX_PATH:
            refusals.append(f"{directory}: the path is too long")
        elif (refusal := _unusable(directory)) is not None:
            refusals.append(f"{directory}: {refusal}")
        else:
            return directory
    raise EmbeddedError(
        f"there is no place for PostgreSQL's socket ({'; '.join(refusals)}): set XDG_RUNTIME_DIR to "
        f"a directory with a short path that belongs to you"
    )


def _places(data: Path) -> Iterator[Path]:
    """Yield the user's runtime directory, the directories that all users share, and the data directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and _is_ours(Path(runtime)):  # as root it may be another user's
        yield Path(runtime)
    yield from map(Path, _SHARED_DIRECTORIES)
    yield data.parent


def _is_ours(directory: Path) -> bool:
    try:
        about = directory.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return about.st_uid == os.geteuid() and not about.st_mode & others


def _unusable(directory: Path) -> str | None:
    """Create the directory unless it exists; return why it can't be used, or None."""
    try:
        directory.mkdir(mode=_PRIVATE, exist_ok=True)
        about = directory.lstat()
        if not stat.S_ISDIR(about.st_mode):
            return "something else is in its place"
        if about.st_uid != os.geteuid():
            return f"it belongs to the user with uid {about.st_uid}"
        if stat.S_IMODE(about.st_mode) != _PRIVATE:
            directory.chmod(_PRIVATE)
    except OSError as error:
        return error.strerror or str(error)
    return None
