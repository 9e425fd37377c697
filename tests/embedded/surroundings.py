"""A program that executes a command with fewer privileges; only root can start it so.

python surroundings.py [OPTION…] -- COMMAND [ARGUMENT…]

passwd=PATH     mount that file over /etc/passwd
container       keep only the capabilities that container engines leave to root
bare            keep no capability
closed          refuse user namespaces, as the seccomp profiles of container engines do
uid=UID         run as that user and group, which /etc/passwd need not contain
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence

CONTAINERS = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
"""The numbers of the capabilities that `container` keeps: chown, dac_override, … no sys_admin, …"""
_UNSHARE = {"x86_64": 272, "aarch64": 97}
_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_MS_REC, _MS_PRIVATE, _MS_BIND = 1 << 14, 1 << 18, 1 << 12
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22
_FILTER = 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOWED, _REFUSED = 0x7FFF_0000, 0x0005_0000 | 1


def possible(*, passwd: bool = False) -> bool:
    """Return whether this process can set that up, and mount over /etc/passwd if `passwd`."""
    ours = os.geteuid() == 0 and platform.machine() in _UNSHARE
    return ours and (not passwd or _can_unshare(_CLONE_NEWNS))


def has_namespaces() -> bool:
    """Return whether this process can create a user namespace."""
    return _can_unshare(_CLONE_NEWUSER)


def _can_unshare(what: int) -> bool:
    libc = ctypes.CDLL(None)
    if (child := os.fork()) == 0:
        os._exit(0 if libc.unshare(what) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0


def prefix(*options: str, python: str = sys.executable) -> list[str]:
    """Return the beginning of the command line with these options."""
    return [python, "-I", __file__, *options, "--"]


def main(arguments: Sequence[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    border = arguments.index("--")
    command = list(arguments[border + 1 :])
    options = dict(word.partition("=")[::2] for word in arguments[:border])
    if "passwd" in options:
        _done(libc.unshare(_CLONE_NEWNS))
        _done(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
        _done(libc.mount(options["passwd"].encode(), b"/etc/passwd", None, _MS_BIND, None))
    if "container" in options or "bare" in options:
        kept = CONTAINERS if "container" in options else ()
        for capability in set(range(41)) - set(kept):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if "closed" in options:
        _refuse(libc, _UNSHARE[platform.machine()])
    if "uid" in options:
        number = int(options["uid"])
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    os.execvp(command[0], command)


def _refuse(libc: ctypes.CDLL, call: int) -> None:
    """Make the kernel reject a system call of this process and its children."""
    rows = [(_LOAD, 0, 0, 0), (_EQUAL, 0, 1, call), (_RETURN, 0, 0, _REFUSED)]
    rows.append((_RETURN, 0, 0, _ALLOWED))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows))
    described = struct.pack("@HP", len(rows), ctypes.addressof(program))
    _done(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _done(libc.prctl(_PR_SET_SECCOMP, _FILTER, described, 0, 0))


def _done(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main(sys.argv[1:])
