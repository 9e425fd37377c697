"""The first process of a container: reaps orphans and hands signals on, while a child does the work.

Orphans of a container fall to its first process, and stay zombies until that reaps them. A process
that works can't: it would take the exit status of children that others of its parts wait for. So it
becomes two: the first process reaps whatever falls to it, and its child has none but its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_CHILD_SUBREAPER: Final = 37
_HANDED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_BY_THE_KERNEL: Final = 0x80
"""Where a signal comes from (`si_code`) that a terminal sends to all of its foreground group."""
_KILLED: Final = 128


def become_init_child() -> None:
    """Return in a child if orphans fall to this process; either ends when the other does.

    Call it before there are threads. Does nothing in a process to which no orphans fall.
    """
    if os.getpid() != 1 and not _is_subreaper():
        return
    heard = {signal.SIGCHLD, *_HANDED_ON}
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    first = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != first:
            os._exit(1)
        return
    while True:
        told = signal.sigwaitinfo(heard)
        if told.si_signo == signal.SIGCHLD:
            if (status := _reap(child)) is not None:
                os._exit(status if status >= 0 else _KILLED - status)
        elif told.si_code != _BY_THE_KERNEL:  # else the child has it, too
            os.kill(child, told.si_signo)


def _reap(child: int) -> int | None:
    """Reap all that have ended; return the status of the child if it is among them."""
    status: int | None = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = os.waitstatus_to_exitcode(ended)


def _is_subreaper() -> bool:
    flag = ctypes.c_int(0)
    told = ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return told == 0 and flag.value != 0
