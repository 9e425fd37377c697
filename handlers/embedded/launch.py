"""A program that becomes a server, and that the kernel ends together with its parent.

    python -I -S launch.py PARENT SIGNAL [OPTION…] COMMAND [ARGUMENT…]

    PARENT            process id of the parent
    SIGNAL            the signal that the kernel sends to the server when the parent ends
    --namespace UID   in a user namespace, in which the current uid appears as UID
    --user UID GID    as another user, who keeps root's capability to enter and write every directory
    --writes PATH     first check that this user can create a file in the directory PATH

It is a program of its own because no Python code should run between fork and exec of a process that may
have threads. It uses only the standard library.
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
    """`cap_user_header_t`: the process whose capabilities are read or set; 0 is this process."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """`cap_user_data_t`: 32 capabilities."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


def main(arguments: Sequence[str]) -> None:
    """Change the user, ask for the signal at the parent's end, and execute the command."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent, stop_signal, *command = arguments
    if command[0] == "--namespace":
        _enter_namespace(libc, int(command[1]))
        del command[:2]
    elif command[0] == "--user":
        _change_user(libc, int(command[1]), int(command[2]))
        del command[:3]
    while command[0] == "--writes":
        _try_to_write(command[1])
        del command[:2]
    if not os.access(command[0], os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), command[0])
    # After the change of user, which would reset it.
    libc.prctl(_PR_SET_PDEATHSIG, int(stop_signal))
    if os.getppid() != int(parent):
        sys.exit("the parent process has ended")
    os.execv(command[0], command)  # noqa: S606 — no shell is wanted


def _enter_namespace(libc: ctypes.CDLL, inside: int) -> None:
    """Enter a user namespace in which the current user appears as `inside`; new files keep their owner."""
    uid, gid = os.geteuid(), os.getegid()
    _check(libc.unshare(_CLONE_NEWUSER), "user namespaces")
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "wb", buffering=0) as file:  # noqa: PTH123 — see -S above
            file.write(content.encode())
    # Executing the command drops capabilities too; `--writes` has to check without them.
    _keep_capabilities(libc, 0)


def _change_user(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    """Change the user, and keep CAP_DAC_OVERRIDE, if present, also for the command."""
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
    # PostgreSQL calls access() for its programs, which considers the capabilities of a user other than root
    # only with this. Without CAP_SETPCAP it can't be set, and the programs must be readable for everybody.
    libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if _keep_capabilities(libc, 1 << _CAP_DAC_OVERRIDE):
        ambient = libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)
        _check(ambient, "CAP_DAC_OVERRIDE")


def _keep_capabilities(libc: ctypes.CDLL, wanted: int) -> int:
    """Drop all capabilities except those in `wanted`; return the ones that are left."""
    header, sets = _Header(_CAPABILITY_VERSION_3, 0), (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), sets), "capget")
    kept = int(sets[0].permitted) & wanted
    sets[0], sets[1] = _Sets(kept, kept, kept), _Sets(0, 0, 0)
    _check(libc.capset(ctypes.byref(header), sets), "capset")
    return kept


def _try_to_write(directory: str) -> None:
    """Create a file and remove it; unlike access(), this also finds a read-only or full disk."""
    path = f"{directory}/.workspaced-{os.getpid()}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)  # noqa: PTH108 — see -S above


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{where}{error.strerror}")
