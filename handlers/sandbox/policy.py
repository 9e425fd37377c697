"""How far builds and agents are kept from the rest of the machine: chosen once, applied by `confined`.

What an unprivileged Linux allows: limits of each process always; Landlock, which keeps files from
being written or read; or bubblewrap, where it is installed and works, which hides them.
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

from handlers.sandbox import confined_exec
from handlers.sandbox.processes import INHERITED_FILE_LIMIT
from handlers.settings import InvalidSettings, expanded

_MIB: Final = 1024 * 1024
_TEMPORARY: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")  # noqa: S108 — what anybody may use
_CACHES: Final = (
    ".bun/install .cache .cargo/git .cargo/registry .conda .deno .gem .gradle .ivy2 .m2 .npm .nuget "
    ".pnpm-store .yarn go/pkg .local/share/pnpm .local/share/uv"
)
"""Below a user's home: what package managers keep, and none runs by itself."""

_OF_THE_KERNEL: Final = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus")
"""What sets the kernel of the whole machine."""
_NO_LANDLOCK: Final = "this kernel has no Landlock, or too old a one"
_OURS: Final = Path(__file__).parents[2]

_log = logging.getLogger(__name__)


class Mechanism(StrEnum):
    """What confines."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"
    RLIMITS = "rlimits"


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """What each process of a build, or of an agent, may use; 0: no bound."""

    cpu_seconds: int = 0
    """Of a step's processes: what an agent starts may run for weeks."""
    memory_mib: int = 0
    """0: what the machine has."""
    files: int = 0
    processes: int = 0
    """Of the whole user, the kernel counts so; it does not count root's."""
    file_size_mib: int = 0

    def words(self, *, step: bool) -> list[str]:
        """Return them as `confined` reads them."""
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        said = {
            "cpu": self.cpu_seconds if step else 0,
            "data": self.memory_mib * _MIB or machine,
            "files": self.files,
            "processes": self.processes,
            "file_size": self.file_size_mib * _MIB,
        }
        return [f"{key}={value}" for key, value in said.items() if value]


@dataclass(frozen=True, slots=True)
class Confinement:
    """A way to confine, and what it keeps builds from."""

    way: Mechanism = Mechanism.RLIMITS
    bounds: ResourceLimits = field(default_factory=ResourceLimits)
    private: tuple[Path, ...] = ()
    """What builds may not read."""
    writable: tuple[Path, ...] = ()
    """What they may write beside their workspace."""
    readable: tuple[Path, ...] = ()
    """What they may read though it is below something private."""
    bubblewrap: str = "bwrap"

    def prefix(self, workspace: Path, *, step: bool, signals: bool = False) -> list[str]:
        """Return what to put before a command that works in `workspace`.

        `signals`: it may signal processes that are not its own, as who ends a workspace must.
        """
        words = self.bounds.words(step=step)
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] != INHERITED_FILE_LIMIT:
            words.append(f"soft_files={INHERITED_FILE_LIMIT}")
        if self.way is Mechanism.LANDLOCK:
            words.append("landlock=1")
            words += [f"private={path}" for path in self.private]
            words += [f"read={path}" for path in self.readable]
            words += [f"write={path}" for path in (*self.writable, workspace)]
            words += ["signals=1"] * signals
        launcher = [sys.executable, "-I", "-S", confined_exec.__file__, *words, "--"]
        if self.way is Mechanism.BUBBLEWRAP:
            return [*launcher, *self._wrapped(workspace, step=step)]
        return launcher

    def _wrapped(self, workspace: Path, *, step: bool) -> list[str]:
        """Return the words of bubblewrap: all read-only, what is private covered, the rest laid over.

        A session of its own and a `/dev` of its own keep it from every terminal of the host.
        """
        words = [self.bubblewrap, "--new-session"]
        if step:  # what an agent's scripts left running goes on when the agent's process is killed
            words.append("--die-with-parent")
        # A user namespace also for root, whose powers the launcher has dropped by then.
        words += ["--unshare-user", "--unshare-pid", "--unshare-ipc"]
        words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for path in map(str, self.writable):
            shared = any(path == place or path.startswith(f"{place}/") for place in _TEMPORARY)
            words += ["--tmpfs", path] if shared else ["--bind-try", path, path]
        for path in {sys.prefix, sys.base_prefix, str(_OURS)}:  # what runs us may be below /tmp
            words += ["--ro-bind", path, path]
        for path in map(str, self.private):
            covered = ["--tmpfs", path] if Path(path).is_dir() else ["--ro-bind", os.devnull, path]
            words += covered
        for path in map(str, self.readable):
            words += ["--ro-bind", path, path]
        for path in _OF_THE_KERNEL:  # bubblewrap leaves them to root, whose uid alone lets it write
            words += ["--ro-bind-try", path, path]
        return [*words, "--bind", str(workspace), str(workspace), "--"]


def choose_confinement(
    wanted: str,
    bounds: ResourceLimits,
    *,
    private: Sequence[Path],
    environ: Mapping[str, str],
    writable: str = "",
) -> Confinement:
    """Return the confinement that is wanted; say so when `auto` finds the least only.

    `wanted`: a Mechanism, or `auto` for the first that works. `private` are directories and files of ours.
    Raises InvalidSettings for a Mechanism that can't be had: who names one relies on it.
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
        words = f"builds are confined by Landlock {confined_exec.landlock_version()}"
        if shared := _shared(hidden, places):
            words += f"; they can read {shared}, which is below a directory that they may write"
            hidden = ()
        _log.info("%s", words)
        return Confinement(Mechanism.LANDLOCK, bounds, hidden, places)
    if wanted in (Mechanism.LANDLOCK, Mechanism.BUBBLEWRAP):
        raise _missing(wanted, why)
    if wanted == "auto":
        _log.warning(
            "builds are confined by limits of their processes only: %s, and %s", _NO_LANDLOCK, why
        )
    return Confinement(Mechanism.RLIMITS, bounds)


def require_confinement(wanted: str, environ: Mapping[str, str]) -> None:
    """See whether a Mechanism that was named can be had, before anything starts. Raises InvalidSettings."""
    if wanted == Mechanism.LANDLOCK and not confined_exec.is_landlock_usable():
        raise _missing(wanted, _NO_LANDLOCK)
    if wanted == Mechanism.BUBBLEWRAP:
        alone = Confinement(Mechanism.BUBBLEWRAP, bubblewrap=_bubblewrap(environ))
        if why := _refusal(alone):
            raise _missing(wanted, why)


def _missing(wanted: str, why: str) -> InvalidSettings:
    others = " or ".join(way for way in Mechanism if way != wanted)
    return InvalidSettings(
        f"WORKSPACED_CONFINEMENT is {wanted}, which can't be had here: {why}; provide it, or choose "
        f"{others}, or auto for the first that works"
    )


def _bubblewrap(environ: Mapping[str, str]) -> str:
    return shutil.which("bwrap", path=environ.get("PATH")) or ""


def _writable(environ: Mapping[str, str], more: str) -> tuple[Path, ...]:
    try:
        named = [expanded(Path(path)) for path in more.split(os.pathsep) if path]
    except ValueError as no:
        raise InvalidSettings(f"WORKSPACED_WRITABLE is {more!r}: {no}") from None
    home = Path(environ["HOME"]) if environ.get("HOME") else None
    caches = [] if home is None else [home / cache for cache in _CACHES.split()]
    places = [Path(tempfile.gettempdir()), *map(Path, _TEMPORARY), *named, *caches]
    if "TMPDIR" in environ:
        places.append(Path(environ["TMPDIR"]))
    # HOME may be another user's; what is there can't be seen then, nor written.
    return tuple(dict.fromkeys(path.resolve() for path in places if os.path.exists(path)))  # noqa: PTH110


def _shared(private: Sequence[Path], writable: Sequence[Path]) -> Path | None:
    """Return what can't be private: Landlock takes back nothing of what it grants."""
    for path in private:
        if any(path.is_relative_to(place) for place in writable):
            return path
    return None


def _refusal(confinement: Confinement) -> str:
    """Try it as a step would use it: a kernel or a container may forbid what it needs."""
    if not confinement.bubblewrap:
        return "bubblewrap (bwrap) is not installed"
    try:
        with tempfile.TemporaryDirectory() as place:
            words = confinement.prefix(Path(place), step=True)
            tried = subprocess.run(  # noqa: S603 — ours
                [*words, "/bin/sh", "-c", ":"],
                cwd=place,
                check=False,
                capture_output=True,
                text=True,
                timeout=5,
            )
    except (OSError, subprocess.SubprocessError) as no:
        return f"bubblewrap does not run: {no}"
    if tried.returncode == 0:
        return ""
    return f"bubblewrap does not work here: {tried.stderr.strip() or tried.returncode}"
