"""What a provisioner leaves on disk for an agent, and how it sees that the agent runs.

The two are processes that share nothing else: either may be killed and started anew alone.
"""

from __future__ import annotations

import errno
import fcntl
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
"""The folder in a workspace that belongs to workspaced."""

PRESENCE_TTL: Final = 20.0
"""Seconds that an agent's sign of life lasts; a lost one must be noticed within 30."""
_CONFIG: Final = "config.json"
_CREDENTIAL: Final = "credential.json"
_LOCK: Final = "lock"
_LARGEST: Final = 4 * 1024 * 1024
_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid


class AgentCredential(BaseModel):
    """What an agent connects with, as `agent_credential` answered it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: str = Field(repr=False)
    jwt: str | None = Field(default=None, repr=False)
    inbox_prefix: str
    expires_at: datetime | None = None
    issued_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class AgentConfig(BaseModel):
    """All that an agent has to know, but its credential."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    chat_id: str
    workspace_id: str
    build_id: str
    agent_id: str
    name: str
    nats_url: str
    nats_ca: Path | None = None
    """Who signed the certificate of NATS; None: somebody whom this machine trusts."""
    directory: Path
    startup_script: str = ""
    startup_timeout_seconds: float = 600
    shutdown_script: str = ""
    shutdown_timeout_seconds: float = 60
    env: dict[str, str] = Field(default={}, repr=False)
    secrets: tuple[str, ...] = Field(default=(), repr=False)
    log_limit: Annotated[int, Field(ge=0)] = 0
    presence_ttl: Annotated[float, Field(ge=1)] = PRESENCE_TTL
    """Seconds after which the workers take an agent as lost that did not show itself."""
    traceparent: str | None = None
    machine: str = ""
    """Which start of which machine or container this is (`handlers.sandbox.processes.machine`)."""


class AgentAlreadyRuns(Exception):
    """Another process is this agent."""


def agent_homes(workspace: Path) -> Path:
    """Return the folder of all agents of a workspace."""
    return workspace / OWN_FOLDER / "agents"


def agent_home(workspace: Path, agent_id: str) -> Path:
    """Return the agent's own folder in a workspace."""
    return agent_homes(workspace) / agent_id


@contextmanager
def pinned_home(workspace: Path, agent_id: str) -> Iterator[Path]:
    """Give the agent's folder by a path that stays the same folder, whatever the workspace's code does.

    For a provisioner, which may do more than the template's code: a link that this code left in the
    place of a folder, to another agent's folder for instance, is not followed. The path is good in this process, as long as the context lasts. Raises OSError.
    """
    with ExitStack() as stack:
        home = workspace
        for name in agent_home(Path(), agent_id).parts:
            home = stack.enter_context(pinned_directory(home / name))
        yield home


def write_config(home: Path, config: AgentConfig) -> None:
    """Leave the configuration in the agent's folder, for its owner's eyes only."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(home / _CONFIG, config.model_dump_json().encode())


def read_config(home: Path) -> AgentConfig:
    """Read the configuration. Raises OSError, ValueError."""
    return AgentConfig.model_validate_json(read_regular_file(home / _CONFIG, _LARGEST))


def config_path(home: Path) -> Path:
    """Return the file that an agent is started with."""
    return home / _CONFIG


def write_credential(home: Path, credential: AgentCredential) -> None:
    """Leave the credential in the agent's folder: never on a command line, which all can read."""
    write_atomically(home / _CREDENTIAL, credential.model_dump_json().encode())


def read_credential(home: Path) -> AgentCredential:
    """Read the credential as it is now: it is renewed in place. Raises OSError, ValueError."""
    return AgentCredential.model_validate_json(read_regular_file(home / _CREDENTIAL, _LARGEST))


@contextmanager
def agent_lock(home: Path) -> Iterator[None]:
    """Be the agent of this folder until the context, or the process, ends. Raises AgentAlreadyRuns."""
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
    """Return the process that is the agent of this folder now, None for nobody.

    The kernel tells who holds the lock: a number in a file could be a dead process' by now.
    Raises OSError when that can't be seen now.
    """
    try:
        looked = os.open(home / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as no:
        if no.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR):
            return None  # there is none, or scripts left something else in its place
        raise
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(looked, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else int(pid)
    finally:
        os.close(looked)
