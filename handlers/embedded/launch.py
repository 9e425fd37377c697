"""Becomes a server that dies with whoever started it: run as a program, on the standard library alone.

    python -I -S launch.py PARENT FAREWELL [--namespace | --user UID GID] COMMAND [ARGUMENT…]

Doing this here, and not between fork and exec of the parent, keeps Python code out of the forked
copy of a process that may have threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

_CLONE_NEWUSER = 0x1000_0000
_PR_SET_PDEATHSIG = 1
_UID_INSIDE = 1000


def main(arguments: Sequence[str]) -> None:
    """Change who we are, tie our life to the parent's, and become the command."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent, farewell, *command = arguments
    if command[0] == "--namespace":
        del command[0]
        _enter_namespace(libc)
    elif command[0] == "--user":
        uid, gid = int(command[1]), int(command[2])
        del command[:3]
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    # Only now: a change of credentials would undo it.
    libc.prctl(_PR_SET_PDEATHSIG, int(farewell))
    if os.getppid() != int(parent):
        sys.exit("the process that started this has gone")
    os.execv(command[0], command)  # noqa: S606 — no shell is wanted


def _enter_namespace(libc: ctypes.CDLL) -> None:
    """See ourselves as an ordinary user, while the files that we make stay the caller's."""
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"user namespaces: {os.strerror(code)}")
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{_UID_INSIDE} {uid} 1"),
        ("gid_map", f"{_UID_INSIDE} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "wb", buffering=0) as file:  # noqa: PTH123 — see -S above
            file.write(content.encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(str(error))
