"""A program that executes a command with fewer rights; it uses the standard library alone.

    python -I -S confined_exec.py [KEY=VALUE…] -- COMMAND [ARGUMENT…]

    cpu= data= files= processes= file_size=    rlimits of each process, in seconds, bytes and counts
    soft_files=        the soft limit of open files
    landlock=1         apply Landlock: the command may write only below `write=` paths
    private=PATH       it may not read below PATH, except below `read=` and `write=` paths
    read=PATH          it may read below PATH, although a parent of PATH is private
    write=PATH         it may do everything below PATH
    signals=1          it may signal processes outside of its own Landlock domain

A program does this, not code between fork and exec: Python code is not safe in the forked copy of a
process with threads. It becomes three processes: the command; a keeper, a child subreaper that adopts
every process that leaves the command's group or session, so that it can be found and ended; and a
shell in place of the process that was started, which waits for the command and exits with its status.
On END the keeper kills all descendants of the command. It is told of each one that it adopts, so it also
catches one that forks and exits faster than anybody can search for it.

Landlock is not a module of its own: with `-I -S` this program can't import its neighbours.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence

END = signal.SIGUSR1
"""The signal on which a keeper kills everything that it keeps, and ends."""
KEEP = "keep"
"""The first argument of a keeper."""
_REPORT = 'read -r s || exit 126; case $s in -*) ulimit -c 0; kill "$s" $$;; esac; exit "$s"'

_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_DROPPED_CAPABILITIES = (2, 12, *range(16, 28), 32, 33, 34, 37, 38, 39, 40)
"""Capabilities with which root could escape: file handles, networks, kernel modules, raw devices, mounts,
the memory of other processes (also through perf), clocks, resources, security modules, BPF."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _BENEATH = 1, 1
_MINIMUM_VERSION = 2
"""The first Landlock version that lets files be moved between directories."""
_VERSION_WITH_SCOPES = 6
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE = 1 << 14
_ALL = (1 << 14) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
"""The only devices that are granted. `tty` is the command's own terminal, if it creates one.

Terminals, consoles, disks and input devices of the host can't be opened by name.
"""
_OF_DEVICES = ("devpts", "devtmpfs")
"""Types of file systems that hold terminals, wherever they are mounted."""
_NEW_MOUNTS, _NEW_USERS = 0x20000, 0x10000000
_SLAVE, _BIND, _NO_SUID, _NO_EXEC = 0x84000, 0x1000, 2, 8

_OF_KEEPERS = (signal.SIGCHLD, END)

_LIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "file_size": resource.RLIMIT_FSIZE,
}


def main(arguments: Sequence[str]) -> None:
    """Fork into the command, the keeper and the shell that reports the command's status."""
    if arguments[0] == KEEP:
        _keep(int(arguments[1]), int(arguments[2]))
        return
    border = arguments.index("--")
    words = [word.partition("=") for word in arguments[:border]]
    group = os.getpgrp()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    reading, writing = os.pipe()
    if os.fork():
        os.dup2(reading, 0)
        os.execv("/bin/sh", ["sh", "-c", _REPORT])  # noqa: S606 — a constant command
    os.setpgid(0, 0)
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    command = os.fork()
    if not command:
        _become(arguments[border + 1 :], [(key, value) for key, _, value in words], group)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Blocked signals are pending for the program that is executed next.
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_KEEPERS)
    os.set_inheritable(writing, True)
    # Executed again, so that its command line is not that of the command.
    keeper = [sys.executable, "-I", "-S", __file__, KEEP, str(command), str(writing)]
    os.execv(sys.executable, keeper)  # noqa: S606 — this program


def landlock_version() -> int:
    """Return the kernel's Landlock version, 0 if it has none."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _VERSION)))


def is_landlock_usable() -> bool:
    """Return whether the kernel's Landlock can confine a build."""
    return landlock_version() >= _MINIMUM_VERSION


def uncovered_paths(private: Sequence[str]) -> Iterator[str]:
    """Yield the smallest set of paths that covers everything except the private paths.

    These are the siblings of the private paths and of their parents.
    """
    ways = {path for one in private for path in _ways(one)}
    for way in sorted(ways - set(private)):
        try:
            entries = os.scandir(way)
        except OSError:
            continue
        with entries:
            # A link needs no rule: its target has one, or is private.
            yield from (e.path for e in entries if e.path not in ways and not e.is_symlink())
    if not private:
        yield "/"


def _ways(path: str) -> Iterator[str]:
    while path != "/":
        yield path
        path = os.path.dirname(path)  # noqa: PTH120 — pathlib is slow to import
    yield path


def _keep(command: int, writing: int) -> None:
    """Reap descendants of the command until none is left; kill them if END arrives."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    ending = False
    while _reap(command, writing):
        if ending:
            _kill_children()
        # The kernel gives an orphan to the keeper before it reports the end of the orphan's parent.
        ending = signal.sigwait(_OF_KEEPERS) == END or ending


def _reap(command: int, writing: int) -> bool:
    """Reap the children that have ended, and report the command's status; return whether any is left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == command:
            try:  # noqa: SIM105 — contextlib is slow to import
                os.write(writing, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except BrokenPipeError:
                pass  # the shell that waits for the status was killed
            os.close(writing)


def _kill_children() -> None:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123 — pathlib is slow to import
            children = file.read().split()
    except OSError:
        return  # this kernel does not list them: whoever sent END kills all processes that it finds
    for pid in children:
        # Children are reaped by this process only, so no pid can have been reused.
        os.kill(int(pid), signal.SIGKILL)


def _become(command: Sequence[str], words: Sequence[tuple[str, str]], group: int) -> None:
    try:
        os.setpgid(0, group)
        libc, options = _libc(), dict(words)
        terminals = "landlock" in options and _make_terminals(libc)
        if os.geteuid() == 0:
            for power in _DROPPED_CAPABILITIES:
                libc.prctl(_PR_CAPBSET_DROP, power, 0, 0, 0)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")
        if "landlock" in options:
            _confine(
                libc,
                [value for key, value in words if key == "private"],
                [value for key, value in words if key == "write"]
                + ["/dev/pts", "/dev/ptmx"] * terminals,
                read=[value for key, value in words if key == "read"],
                signals="signals" in options,
            )
        if "soft_files" in options:
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            soft = int(options["soft_files"])
            soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for key, number in _LIMITS.items():
            if key in options:
                _limit(number, int(options[key]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.execvp(command[0], list(command))  # noqa: S606 — no shell is wanted
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{command[0]} can't be run in its confinement: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(126)


def _limit(number: int, limit: int) -> None:
    soft, hard = resource.getrlimit(number)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    # Programs that use select() need a low soft limit; others may raise it themselves.
    keeps = number == resource.RLIMIT_NOFILE and soft != resource.RLIM_INFINITY
    resource.setrlimit(number, (min(soft, limit) if keeps else limit, limit))


def _confine(
    libc: ctypes.CDLL,
    private: Sequence[str],
    write: Iterable[str],
    *,
    read: Iterable[str],
    signals: bool,
) -> None:
    version = landlock_version()
    handled = _ALL | (_TRUNCATE if version > _MINIMUM_VERSION else 0)
    scoped = _ABSTRACT_SOCKETS | (0 if signals else _SIGNALS)
    attributes = struct.pack("=QQQ", handled, 0, scoped)[
        : None if version >= _VERSION_WITH_SCOPES else 8
    ]
    rules = _done(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    _allow(libc, rules, "/", _READ_DIR)
    for path in (*uncovered_paths((*private, "/dev", *_mounted(_OF_DEVICES))), *read):
        _allow(libc, rules, path, _EXECUTE | _READ_FILE)
    for path in _DEVICES:
        _allow(libc, rules, path, _READ_FILE | _WRITE_FILE | handled & _TRUNCATE)
    # Not for root, who could set parameters of the kernel there, such as core_pattern.
    if os.geteuid():
        _allow(libc, rules, "/proc", _WRITE_FILE | handled & _TRUNCATE)
    for path in write:
        _allow(libc, rules, path, handled)
    _done(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _make_terminals(libc: ctypes.CDLL) -> bool:
    """Replace the host's pseudo-terminals with new ones; return False if the kernel forbids that.

    Without them the command can't open any. A child process tries first: some kernels (Ubuntu's
    AppArmor) let anybody create a user namespace, allow nothing inside it, and there is no way out.
    """
    child = os.fork()
    if not child:
        try:
            _mount_terminals(libc)
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        return False
    _mount_terminals(libc)
    return True


def _mount_terminals(libc: ctypes.CDLL) -> None:
    """Mount new pseudo-terminals for this process and its children.

    An unprivileged user needs a user namespace for that. Root does not, and in one could not access
    files of other users.
    """
    user, group = os.geteuid(), os.getegid()
    _done(libc.unshare(_NEW_MOUNTS | (_NEW_USERS if user else 0)), "unshare")
    if user:
        ids = (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        )
        for name, content in ids:
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 — pathlib is slow to import
                file.write(content)
    pseudo = b"newinstance,ptmxmode=0666,mode=0620"
    _done(libc.mount(None, b"/", None, _SLAVE, None), "mount")
    _done(libc.mount(b"devpts", b"/dev/pts", b"devpts", _NO_SUID | _NO_EXEC, pseudo), "mount")
    _done(libc.mount(b"/dev/pts/ptmx", b"/dev/ptmx", None, _BIND, None), "mount")


def _mounted(kinds: Sequence[str]) -> Iterator[str]:
    """Yield the mount points of file systems of these types."""
    with open("/proc/self/mounts", "rb") as mounts:  # noqa: PTH123 — pathlib is slow to import
        for line in mounts:
            _, place, kind, _ = line.split(b" ", 3)
            if kind.decode() in kinds:
                yield os.fsdecode(place.decode("unicode_escape").encode("latin-1"))


def _allow(libc: ctypes.CDLL, rules: int, path: str, access: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it was removed in the meantime
    try:
        if not os.path.isdir(f"/proc/self/fd/{beneath}"):  # noqa: PTH112 — as above
            access &= _OF_FILES
        if access:
            rule = struct.pack("=Qi", access, beneath)
            _done(libc.syscall(_ADD_RULE, rules, _BENEATH, rule, 0))
    finally:
        os.close(beneath)


def _done(result: int, what: str = "Landlock") -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(sys.argv[1:])
