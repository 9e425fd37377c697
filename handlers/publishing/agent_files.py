"""Files with which a provisioner starts an agent, and the lock that shows that the agent is running.

The two processes share nothing else. Either may be killed and restarted without the other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from handlers.publishing.atomic_files import pinned_directory, read_regular_file, write_atomically

OWN_FOLDER: Final = ".workspaced"
"""The folder in each workspace that belongs to workspaced."""

PRESENCE_TTL: Final = 20.0
"""Seconds after which an agent's presence message expires; a lost agent must be noticed within 30."""
ACTIVITY_SECONDS: Final = 60.0
"""`AgentConfig.activity_seconds` of an agent whose job does not name it."""
REFUSED_STATUS: Final = 3
"""Exit status of an agent that NATS has refused for so long that its build must be superseded."""
CONNECTION: Final = "connection"
"""The key of the facts in an agent's journal that say whether it is connected."""
_JOURNAL: Final = "journal.json"
_CONFIG: Final = "config.json"
_CREDENTIAL: Final = "credential.json"
_LOCK: Final = "lock"
_MAX_FILE_SIZE: Final = 4 * 1024 * 1024
_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid


class AgentCredential(BaseModel):
    """The credential with which an agent connects to NATS, as the rpc `agent_credential` returns it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: str = Field(repr=False)
    jwt: str | None = Field(default=None, repr=False)
    inbox_prefix: str
    expires_at: datetime | None = None
    issued_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class AgentConfig(BaseModel):
    """Everything an agent needs to know except its credential."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    chat_id: str
    workspace_id: str
    build_id: str
    agent_id: str
    name: str
    nats_url: str
    nats_ca: Path | None = None
    """CA bundle to verify NATS with; None: the system's."""
    directory: Path
    """The workspace."""
    work_directory: str = "."
    """Where commands and relative paths of the tools start, below the workspace."""
    startup_script: str = ""
    startup_timeout_seconds: float = 600
    shutdown_script: str = ""
    shutdown_timeout_seconds: float = 60
    env: dict[str, str] = Field(default={}, repr=False)
    secrets: tuple[str, ...] = Field(default=(), repr=False)
    log_limit: Annotated[int, Field(ge=0)] = 0
    presence_ttl: Annotated[float, Field(ge=1)] = PRESENCE_TTL
    """Seconds without a presence message after which workers take the agent as lost."""
    activity_seconds: Annotated[float, Field(ge=0)] = ACTIVITY_SECONDS
    """Seconds between two reports of activity while it lasts; 0: none, because it puts no end off."""
    traceparent: str | None = None
    machine: str = ""
    """The start of the machine or container: `handlers.sandbox.processes.machine_identity`."""

    def ids(self) -> dict[str, str]:
        """Return the ids by which messages name this agent, its build, workspace and chat."""
        return self.model_dump(include={"chat_id", "workspace_id", "build_id", "agent_id"})


class AgentAlreadyRuns(Exception):
    """Another process is the agent of this folder."""


def agent_homes(workspace: Path) -> Path:
    """Return the folder that contains the folders of all agents of a workspace."""
    return workspace / OWN_FOLDER / "agents"


def agent_home(workspace: Path, agent_id: str) -> Path:
    """Return an agent's folder in its workspace."""
    return agent_homes(workspace) / agent_id


@contextmanager
def pinned_home(workspace: Path, agent_id: str) -> Iterator[Path]:
    """Yield a path to the agent's folder that code in the workspace cannot redirect.

    A provisioner has more rights than the template's code, so it must not follow a link that this code has
    put in the place of a folder, for example to the folder of another agent. The path is valid in this
    process and inside the context. Raises OSError.

    """
    with ExitStack() as stack:
        home = workspace
        for name in agent_home(Path(), agent_id).parts:
            home = stack.enter_context(pinned_directory(home / name))
        yield home


def write_config(home: Path, config: AgentConfig) -> None:
    """Write the configuration to the agent's folder, readable by its owner only."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not by pydantic: the path of a directory need not be UTF-8.
    write_atomically(home / _CONFIG, json.dumps(config.model_dump(), default=os.fspath).encode())


def read_config(home: Path) -> AgentConfig:
    """Read the configuration. Raises OSError, ValueError."""
    content = read_regular_file(home / _CONFIG, _MAX_FILE_SIZE)
    try:
        return AgentConfig.model_validate(json.loads(content))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def config_path(home: Path) -> Path:
    """Return the path of the file that an agent is started with."""
    return home / _CONFIG


def journal_path(home: Path) -> Path:
    """Return the path of the agent's journal."""
    return home / _JOURNAL


def has_connected(home: Path) -> bool:
    """Return whether the agent's journal says that it has connected to NATS. Raises OSError."""
    try:
        journal = json.loads(read_regular_file(journal_path(home), _MAX_FILE_SIZE))
        return CONNECTION in journal["facts"]
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return False


def write_credential(home: Path, credential: AgentCredential) -> None:
    """Write the credential to the agent's folder. On a command line, every user could read it."""
    write_atomically(home / _CREDENTIAL, credential.model_dump_json().encode())


def read_credential(home: Path) -> AgentCredential:
    """Read the current credential, which is renewed in place. Raises OSError, ValueError."""
    return AgentCredential.model_validate_json(
        read_regular_file(home / _CREDENTIAL, _MAX_FILE_SIZE)
    )


@contextmanager
def agent_lock(home: Path) -> Iterator[None]:
    """Hold the lock of this agent until the context or the process ends. Raises AgentAlreadyRuns."""
    held = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgentAlreadyRuns(str(home)) from None
        yield
    finally:
        os.close(held)


def running_agent(home: Path) -> int | None:
    """Return the pid of the process that is the agent of this folder now, or None.

    The kernel reports who holds the lock; a pid in a file could belong to another process by now.
    Raises OSError if the lock can't be examined now.

    """
    try:
        looked = os.open(home / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR):
            return None  # there is no lock, or a script has replaced it
        raise
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(looked, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else int(pid)
    finally:
        os.close(looked)
