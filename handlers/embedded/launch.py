"""Becomes a server that dies with whoever started it: run as a program, on the standard library alone.

    python -I -S launch.py PARENT FAREWELL [OPTION…] COMMAND [ARGUMENT…]

    --namespace UID   in a user namespace, where our uid looks like UID
    --user UID GID    as another user, who keeps root's power to pass and write every directory
    --writes PATH     only if that user can create a file in the directory PATH

Doing this here, and not between fork and exec of the parent, keeps Python code out of the forked
copy of a process that may have threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence

_CLONE_NEWUSER = 0x1000_0000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 1 << 2
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x2008_0522


class _Header(ctypes.Structure):
    """`cap_user_header_t`: whose capabilities are read or set; pid 0 is this process."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """`cap_user_data_t`: 32 capabilities."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


def main(arguments: Sequence[str]) -> None:
    """Change who we are, tie our life to the parent's, and become the command."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent, farewell, *command = arguments
    if command[0] == "--namespace":
        _enter_namespace(libc, int(command[1]))
        del command[:2]
    elif command[0] == "--user":
        _become(libc, int(command[1]), int(command[2]))
        del command[:3]
    while command[0] == "--writes":
        _try_to_write(command[1])
        del command[:2]
    if not os.access(command[0], os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), command[0])
    # Only now: a change of credentials would undo it.
    libc.prctl(_PR_SET_PDEATHSIG, int(farewell))
    if os.getppid() != int(parent):
        sys.exit("the process that started this has gone")
    os.execv(command[0], command)  # noqa: S606 — no shell is wanted


def _enter_namespace(libc: ctypes.CDLL, inside: int) -> None:
    """See ourselves as the user `inside`, while the files that we make stay the caller's."""
    uid, gid = os.geteuid(), os.getegid()
    _done(libc.unshare(_CLONE_NEWUSER), "user namespaces")
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "wb", buffering=0) as file:  # noqa: PTH123 — see -S above
            file.write(content.encode())
    # Executing the command takes these away too; without them a try shows what the command can do.
    _keep(libc, 0)


def _become(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    """Become another user, who keeps CAP_DAC_OVERRIDE if we have it; the command keeps it too."""
    _done(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
    # access(), which PostgreSQL asks about its programs, counts another user's capabilities only with
    # this. Root may lack the power to set it (CAP_SETPCAP); then these programs must be open to all.
    libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if _keep(libc, 1 << _CAP_DAC_OVERRIDE):
        ambient = libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)
        _done(ambient, "CAP_DAC_OVERRIDE")


def _keep(libc: ctypes.CDLL, wanted: int) -> int:
    """Give up all capabilities but those `wanted` that we have; return these."""
    header, sets = _Header(_CAPABILITY_VERSION_3, 0), (_Sets * 2)()
    _done(libc.capget(ctypes.byref(header), sets), "capget")
    kept = int(sets[0].permitted) & wanted
    sets[0], sets[1] = _Sets(kept, kept, kept), _Sets(0, 0, 0)
    _done(libc.capset(ctypes.byref(header), sets), "capset")
    return kept


def _try_to_write(directory: str) -> None:
    """Create a file and remove it, which says more than access(): a disk can be read-only, or full."""
    path = f"{directory}/.workspaced-{os.getpid()}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)  # noqa: PTH108 — see -S above


def _done(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{where}{error.strerror}")
