"""The first process of a container: it reaps orphans and forwards signals to a child that does the work.

Orphaned processes of a container become children of its first process, and stay zombies until it reaps
them. A process that does other work can't reap just any child: it would take the exit status away from
the code that waits for that child. So it forks: the first process reaps, and its child works.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_CHILD_SUBREAPER: Final = 37
_FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FROM_KERNEL: Final = 0x80
"""The `si_code` of a signal that a terminal sends to its whole foreground group."""
_KILLED: Final = 128


def become_init_child() -> None:
    """Fork if orphans are reparented to this process, and return in the child.

    The parent reaps and forwards signals; either process ends when the other one does. Call this before any
    thread is started. Returns at once in a process that does not adopt orphans.

    """
    if os.getpid() != 1 and not _is_subreaper():
        return
    signals = {signal.SIGCHLD, *_FORWARDED}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    first = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != first:
            os._exit(1)
        return
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_signo == signal.SIGCHLD:
            if (status := _reap(child)) is not None:
                os._exit(status if status >= 0 else _KILLED - status)
        elif (
            received.si_code != _FROM_KERNEL
        ):  # otherwise the terminal has sent it to the child as well
            os.kill(child, received.si_signo)


def _reap(child: int) -> int | None:
    """Reap every process that has ended; return the status of `child` if it is one of them."""
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
    received = ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return received == 0 and flag.value != 0
