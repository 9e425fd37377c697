"""The confinement policy of builds and agents: chosen once at the start, applied by `confined_exec`.

An unprivileged Linux process can always set rlimits. Landlock also restricts which files can be read
and written. Bubblewrap, where it is installed and works, hides files altogether.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from handlers.errors import InvalidSettings
from handlers.sandbox import confined_exec
from handlers.sandbox.processes import INHERITED_FILE_LIMIT
from handlers.settings import expanded

_MIB: Final = 1024 * 1024
_TEMPORARY: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")  # noqa: S108 — shared by all users
_CACHES: Final = (
    ".bun/install .cache .cargo/git .cargo/registry .conda .deno .gem .gradle .ivy2 .m2 .npm .nuget "
    ".pnpm-store .yarn go/pkg .local/share/pnpm .local/share/uv"
)
"""Caches of package managers, relative to a home directory. Nothing in them runs by itself."""

_KERNEL_SETTINGS: Final = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus")
"""Files that change settings of the whole machine's kernel."""
_NO_LANDLOCK: Final = "this kernel has no Landlock, or its version is too old"
_SOURCE_ROOT: Final = Path(__file__).parents[2]

_log = logging.getLogger(__name__)


class Mechanism(StrEnum):
    """A mechanism that confines builds and agents."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"
    RLIMITS = "rlimits"


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """Limits of each process of a build or agent; 0 means no limit."""

    cpu_seconds: int = 0
    """For processes of build steps only: processes of an agent may run for weeks."""
    memory_mib: int = 0
    """0 means the memory of the machine."""
    files: int = 0
    processes: int = 0
    """The kernel counts all processes of the user, and does not limit root."""
    file_size_mib: int = 0

    def arguments(self, *, step: bool) -> list[str]:
        """Return the limits as arguments of `confined_exec`."""
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limits = {
            "cpu": self.cpu_seconds if step else 0,
            "data": self.memory_mib * _MIB or machine,
            "files": self.files,
            "processes": self.processes,
            "file_size": self.file_size_mib * _MIB,
        }
        return [f"{key}={value}" for key, value in limits.items() if value]


@dataclass(frozen=True, slots=True)
class Confinement:
    """The confinement of commands: its mechanism, its limits, and the accessible paths."""

    mechanism: Mechanism = Mechanism.RLIMITS
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    private: tuple[Path, ...] = ()
    """Paths that a command may not read."""
    writable: tuple[Path, ...] = ()
    """Paths that it may write in addition to its workspace."""
    readable: tuple[Path, ...] = ()
    """Paths that it may read although a parent of them is private."""
    bubblewrap: str = "bwrap"

    def prefix(self, workspace: Path, *, step: bool, signals: bool = False) -> list[str]:
        """Return the arguments to put before a command that works in `workspace`.

        `signals`: whether it may signal processes that it did not start, as a stop or delete step must.
        """
        arguments = self.limits.arguments(step=step)
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] != INHERITED_FILE_LIMIT:
            arguments.append(f"soft_files={INHERITED_FILE_LIMIT}")
        if self.mechanism is Mechanism.LANDLOCK:
            arguments.append("landlock=1")
            arguments += [f"private={path}" for path in self.private]
            arguments += [f"read={path}" for path in self.readable]
            arguments += [f"write={path}" for path in (*self.writable, workspace)]
            arguments += ["signals=1"] * signals
        launcher = [sys.executable, "-I", "-S", confined_exec.__file__, *arguments, "--"]
        if self.mechanism is Mechanism.BUBBLEWRAP:
            return [*launcher, *self._wrapped(workspace, step=step)]
        return launcher

    def _wrapped(self, workspace: Path, *, step: bool) -> list[str]:
        """Return bubblewrap's command line: `/` read-only, private paths covered, writable paths bound.

        A new session and a new `/dev` keep the command away from every terminal of the host.
        """
        arguments = [self.bubblewrap, "--new-session"]
        if step:  # an agent's scripts survive the agent's process
            arguments.append("--die-with-parent")
        # A user namespace also for root: `confined_exec` has dropped its capabilities by then.
        arguments += ["--unshare-user", "--unshare-pid", "--unshare-ipc"]
        arguments += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for path in map(str, self.writable):
            shared = any(path == place or path.startswith(f"{place}/") for place in _TEMPORARY)
            arguments += ["--tmpfs", path] if shared else ["--bind-try", path, path]
        for path in {
            sys.prefix,
            sys.base_prefix,
            str(_SOURCE_ROOT),
        }:  # this Python may be below /tmp
            arguments += ["--ro-bind", path, path]
        for path in map(str, self.private):
            covered = ["--tmpfs", path] if Path(path).is_dir() else ["--ro-bind", os.devnull, path]
            arguments += covered
        for path in map(str, self.readable):
            arguments += ["--ro-bind", path, path]
        for path in _KERNEL_SETTINGS:  # bubblewrap leaves them writable for root
            arguments += ["--ro-bind-try", path, path]
        return [*arguments, "--bind", str(workspace), str(workspace), "--"]


def choose_confinement(
    wanted: str,
    bounds: ResourceLimits,
    *,
    private: Sequence[Path],
    environ: Mapping[str, str],
    writable: str = "",
) -> Confinement:
    """Return the confinement for the setting `wanted`: a mechanism, or `auto` for the first that works.

    `private`: directories and files of workspaced. `writable`: more writable paths, separated as in
    PATH. Logs the choice, as a warning if `auto` finds nothing but rlimits. Raises InvalidSettings if a
    mechanism that was named is not available.
    """
    hidden = tuple(dict.fromkeys(path.resolve() for path in private if path.exists()))
    places = _writable(environ, writable)
    why = _NO_LANDLOCK
    if wanted in ("auto", Mechanism.BUBBLEWRAP):
        program = _bubblewrap(environ)
        found = Confinement(Mechanism.BUBBLEWRAP, bounds, hidden, places, bubblewrap=program)
        if not (why := _refusal(found)):
            _log.info("builds are confined by bubblewrap")
            return found
    if wanted in ("auto", Mechanism.LANDLOCK) and confined_exec.is_landlock_usable():
        message = f"builds are confined by Landlock {confined_exec.landlock_version()}"
        if shared := _shared(hidden, places):
            message += f"; they can read {shared}, which is below a directory that they may write"
            hidden = ()
        _log.info("%s", message)
        return Confinement(Mechanism.LANDLOCK, bounds, hidden, places)
    if wanted in (Mechanism.LANDLOCK, Mechanism.BUBBLEWRAP):
        raise _missing(wanted, why)
    if wanted == "auto":
        _log.warning(
            "builds are confined by limits of their processes only: %s, and %s", _NO_LANDLOCK, why
        )
    return Confinement(Mechanism.RLIMITS, bounds)


def require_confinement(wanted: str, environ: Mapping[str, str]) -> None:
    """Raise InvalidSettings if a mechanism that was named is not available on this machine."""
    if wanted == Mechanism.LANDLOCK and not confined_exec.is_landlock_usable():
        raise _missing(wanted, _NO_LANDLOCK)
    if wanted == Mechanism.BUBBLEWRAP:
        alone = Confinement(Mechanism.BUBBLEWRAP, bubblewrap=_bubblewrap(environ))
        if why := _refusal(alone):
            raise _missing(wanted, why)


def _missing(wanted: str, why: str) -> InvalidSettings:
    others = " or ".join(way for way in Mechanism if way != wanted)
    return InvalidSettings(
        f"WORKSPACED_CONFINEMENT is {wanted}, which is not available here: {why}; provide it, or choose "
        f"{others}, or auto for the first that works"
    )


def _bubblewrap(environ: Mapping[str, str]) -> str:
    return shutil.which("bwrap", path=environ.get("PATH")) or ""


def _writable(environ: Mapping[str, str], more: str) -> tuple[Path, ...]:
    try:
        named = [expanded(Path(path)) for path in more.split(os.pathsep) if path]
    except ValueError as error:
        raise InvalidSettings(f"WORKSPACED_WRITABLE is {more!r}: {error}") from None
    home = Path(environ["HOME"]) if environ.get("HOME") else None
    caches = [] if home is None else [home / cache for cache in _CACHES.split()]
    places = [Path(tempfile.gettempdir()), *map(Path, _TEMPORARY), *named, *caches]
    if "TMPDIR" in environ:
        places.append(Path(environ["TMPDIR"]))
    # HOME may belong to another user; then its caches can be neither seen nor written.
    return tuple(dict.fromkeys(path.resolve() for path in places if os.path.exists(path)))  # noqa: PTH110


def _shared(private: Sequence[Path], writable: Sequence[Path]) -> Path | None:
    """Return a private path below a writable one: Landlock can't take back what it granted for a parent."""
    for path in private:
        if any(path.is_relative_to(place) for place in writable):
            return path
    return None


def _refusal(confinement: Confinement) -> str:
    """Return why bubblewrap does not work here, or "" if it does: run it once, as a step would."""
    if not confinement.bubblewrap:
        return "bubblewrap (bwrap) is not installed"
    try:
        with tempfile.TemporaryDirectory() as place:
            arguments = confinement.prefix(Path(place), step=True)
            tried = subprocess.run(  # noqa: S603 — a constant command
                [*arguments, "/bin/sh", "-c", ":"],
                cwd=place,
                check=False,
                capture_output=True,
                text=True,
                timeout=5,
            )
    except (OSError, subprocess.SubprocessError) as error:
        return f"bubblewrap does not run: {error}"
    if tried.returncode == 0:
        return ""
    return f"bubblewrap does not work here: {tried.stderr.strip() or tried.returncode}"
