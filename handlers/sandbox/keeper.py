"""A program that keeps a command running after the process that started it has ended.

    python -I -S keeper.py FOLDER LIMIT DESCRIPTOR COMMAND [ARGUMENT…]

It uses the standard library alone. It starts the command in a new session, and runs until no
descendant of the command is left. FOLDER contains:

    output   the first LIMIT bytes of the output; the rest is read and dropped
    ended    written when the command ends: its exit status (negative: a signal), and 1 if processes
             that it started are still running, otherwise 0
    orders   a FIFO; each byte is the number of a signal to send to the command's process group

DESCRIPTOR is a FIFO that is open for reading and writing. The keeper writes a byte to it when one of
these files has changed; its reader gets end of file when the keeper ends, even by SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Sequence

OUTPUT, ENDED, ORDERS = "output", "ended", "orders"

_PR_SET_CHILD_SUBREAPER = 36
_PIECE = 65_536
_PIPE_SIZE = 1024 * 1024
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def reap(command: int) -> tuple[bool, int | None]:
    """Reap this process's children that have ended.

    Return whether any is left, and the exit status of `command` (negative: a signal) if it was among them.
    """
    status: int | None = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False, status
        if pid == 0:
            return True, status
        if pid == command:
            status = os.waitstatus_to_exitcode(ended)


def main(arguments: Sequence[str]) -> None:
    """Start the command and keep it until no descendant is left."""
    folder, limit, notifications = arguments[0], int(arguments[1]), int(arguments[2])
    os.set_inheritable(notifications, False)
    Keeper(folder, limit, notifications, arguments[3:]).run()


class Keeper:
    """A command and all processes that descend from it."""

    def __init__(self, folder: str, limit: int, notifications: int, command: Sequence[str]) -> None:
        self._left, self._notifications, self._ended = limit, notifications, False
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._output = self._open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # Open for writing too: without a writer, reads would return end of file.
        self._orders = self._open(ORDERS, os.O_RDWR | os.O_NONBLOCK)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._signals, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        self._command = os.fork()
        if not self._command:
            _become(command, writing)
        os.chdir("/")  # so that the command's directory can be unmounted
        os.close(writing)
        os.set_blocking(self._reading, False)

    def run(self) -> None:
        """Serve orders and output; return when no descendant of the command is left."""
        poll = select.poll()
        for descriptor in (self._signals, self._orders, self._reading):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._orders:
                    self._send_signals(os.read(self._orders, _PIECE))
                elif descriptor == self._reading:
                    if not self._read():
                        poll.unregister(self._reading)
                else:
                    os.read(self._signals, _PIECE)
            # On every turn: the byte of a signal is lost when the pipe is full.
            if not self._reap():
                self._read_what_is_there()
                return

    def _reap(self) -> bool:
        """Reap processes that have ended; return whether any is left."""
        left, status = reap(self._command)
        if status is not None:
            self._read_what_is_there()
            self._ended = True
            self._write_status(f"{status} {int(left)}\n")
        return left

    def _write_status(self, words: str) -> None:
        try:
            new = self._open(f".{ENDED}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(new, words.encode())
            os.close(new)
            os.rename(f".{ENDED}", ENDED, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            pass  # the disk is full or the folder was removed: the reader finds no status
        self._notify()

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._folder)

    def _send_signals(self, numbers: bytes) -> None:
        for number in numbers:
            # After the command is reaped, its pid may belong to another group.
            if not self._ended:
                try:  # noqa: SIM105 — contextlib is slow to import
                    os.killpg(self._command, number)
                except (ProcessLookupError, PermissionError, ValueError):
                    pass

    def _read(self) -> bool:
        """Store what was written; return whether there may be more."""
        try:
            data = os.read(self._reading, _PIECE)
        except BlockingIOError:
            return True
        if kept := data[: self._left]:
            self._left -= len(kept)
            try:
                os.write(self._output, kept)
            except OSError:  # no space: the command must not fail because of its output
                self._left = 0
            self._notify()
        return bool(data)

    def _read_what_is_there(self) -> None:
        """Read as much as the pipe can hold: all that the command wrote before it ended."""
        for _ in range(_PIPE_SIZE // _PIECE):
            if not self._read():
                return

    def _notify(self) -> None:
        try:  # noqa: SIM105 — contextlib is slow to import
            os.write(self._notifications, b"\n")
        except BlockingIOError:
            pass  # the reader has not read the previous bytes yet


def _become(command: Sequence[str], writing: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for number in (*_IGNORED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        os.execvp(command[0], list(command))  # noqa: S606 — no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{command[0]} can't be run: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(126)


if __name__ == "__main__":
    main(sys.argv[1:])
