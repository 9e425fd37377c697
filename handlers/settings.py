"""What a process can be told: the only reader of `WORKSPACED_*` in the environment."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from handlers.errors import WorkspacedError

_PREFIX: Final = "WORKSPACED_"
Seconds = Annotated[float, Field(ge=0.1, le=30 * 24 * 3600, allow_inf_nan=False)]
"""How long, 30 days at most; decimals allowed."""

_DATA: Final = Path("~/.local/share/workspaced")
_OF_SCRIPTS: Final = (
    *("CHAT_ID", "WORKSPACE_ID", "WORKSPACE_NAME", "WORKSPACE_DIRECTORY", "BUILD_ID", "TRANSITION"),
    *("OWNER_NAME", "TEMPLATE_NAME", "AGENT_ID", "AGENT_NAME", "ERROR_FILE", "AGENT_LAUNCHER"),
)
"""What provisioners tell a template's scripts, which may run `workspaced` as well."""
_OF_PARAMETERS: Final = "PARAM_"


def expanded(path: Path) -> Path:
    """Return the path with the user's home for `~`. Raises ValueError when nothing tells the home.

    Only the default data directory is then below `/`, as container engines set HOME for a user
    without an entry in /etc/passwd: commands that do not need the directory work.
    """
    try:
        if path.parts[:1] == ("~",) and os.environ.get("HOME") == "":
            return Path(pwd.getpwuid(os.getuid()).pw_dir, *path.parts[1:])
        return path.expanduser()
    except (RuntimeError, KeyError):
        if path == _DATA:
            return Path("/", *path.parts[1:])
        raise ValueError(
            f"neither HOME nor /etc/passwd tells the home directory {path.parts[0]}: set HOME, or "
            "give a whole path"
        ) from None


Place = Annotated[Path, AfterValidator(expanded)]
"""A path, in which `~` is the user's home."""


class InvalidSettings(WorkspacedError, ValueError):
    """A flag or variable has a value that cannot be used; the text names each."""

    exit_status = 2


class Settings(BaseSettings):
    """Flag over environment over default, read once by the composition root."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, frozen=True)

    nats_url: str | None = Field(
        default=None,
        repr=False,
        description="URL of the NATS server, or URLs of several servers of a cluster, separated by commas. "
        "If it is not set, `up` starts a NATS server.",
    )
    database_url: str | None = Field(
        default=None,
        repr=False,
        description="URL of the PostgreSQL database. If it is not set, `up` starts a PostgreSQL server.",
    )
    nats_ca: Place | None = Field(
        default=None,
        description="PEM file with the CA certificates that signed the certificate of NATS. If it is not "
        "set, the CA certificates of this machine apply.",
    )
    tls_certificate: Place | None = Field(
        default=None,
        description="PEM file with the TLS certificate of every listener of this process and of the NATS "
        "server that `up` starts. If it is not set, listeners accept connections from this "
        "machine only.",
    )
    tls_key: Place | None = Field(
        default=None, description="PEM file with the private key of that certificate."
    )
    websocket_origins: str | None = Field(
        default=None,
        description="Web pages that may use the WebSocket of `up`, as https://host, separated by commas. If "
        "it is not set, any page may, but still needs a key.",
    )
    credentials: Place | None = Field(
        default=None,
        description="File with the NKey seed to connect to NATS with, or a folder with <role>.nk of each "
        "role. If it is not set, the seeds in the data directory are used.",
    )
    data_dir: Place = Field(
        default=_DATA,
        validate_default=True,
        description="Directory in which `up` keeps its servers, ports, credentials and workspaces.",
    )
    build_timeout: Seconds = Field(
        default=600.0, description="Seconds that a build may take before its chat becomes `failed`."
    )
    agent_connect_timeout: Seconds = Field(
        default=120.0,
        description="Seconds that the chosen agent may take to connect before its chat becomes `failed`.",
    )
    orphan_grace: Seconds = Field(
        default=900.0,
        description="Seconds that a workspace which belongs to no chat may run before workers stop it.",
    )
    startup_scripts_timeout: Seconds = Field(
        default=600.0,
        description="Seconds that startup scripts may take before their chat becomes `failed`.",
    )
    transaction_timeout: Seconds = Field(
        default=5.0,
        description="Seconds after which PostgreSQL ends a transaction that holds chats.",
    )
    ack_wait: Seconds = Field(
        default=5.0,
        description="Seconds after which NATS delivers an event again that no worker has acknowledged.",
    )
    duplicate_window: Seconds = Field(
        default=24 * 3600.0,
        description="Seconds for which NATS remembers a job by its build id and drops repeats.",
    )
    nats_replicas: int = Field(
        default=1,
        ge=1,
        le=5,
        description="Number of servers of a NATS cluster that store each stream. All workers must have the "
        "same value.",
    )
    waiting_calls_per_chat: int = Field(
        default=1_000,
        ge=1,
        description="Number of calls of one chat that may wait. Further calls are refused at once.",
    )
    waiting_calls: int = Field(
        default=100_000,
        ge=1,
        description="Number of calls of all chats that may wait, counted at most once a second. Further "
        "calls are refused at once.",
    )
    job_queue: int = Field(
        default=1_000,
        ge=1,
        description="Number of jobs of a pool that may wait for a provisioner, counted at most once a "
        "second. Further calls that would start a workspace are refused at once.",
    )
    held_calls: int = Field(
        default=10_000,
        ge=1,
        description="Number of rpcs that one gateway may hold open. Further rpcs are refused at once.",
    )
    presence_ttl: float = Field(
        default=20.0,
        ge=1,
        le=25,
        description="Seconds that an agent of the local provisioner may be silent before it counts as "
        "disconnected.",
    )
    workspaces_per_owner: int = Field(
        default=1000,
        ge=0,
        description="Number of workspaces, including stopped ones, that one owner may have on the local "
        "provisioner's machine. 0: no limit.",
    )
    disk_per_owner_mib: int = Field(
        default=0,
        ge=0,
        description="MiB of disk space that all workspaces of one owner may use on the local provisioner's "
        "machine, checked before and after each start build. 0: no limit.",
    )
    confinement: Literal["auto", "bubblewrap", "landlock", "rlimits"] = Field(
        default="auto",
        description="How the local provisioner confines builds and agents: bubblewrap, landlock or rlimits "
        "(the provisioner refuses to start if it is unavailable), or auto, the first of these "
        "that works.",
    )
    writable: str = Field(
        default="",
        description="Paths, separated by colons, that builds and agents may write in addition to their "
        "workspace, temporary directories and the caches of package managers.",
    )
    step_cpu_seconds: int = Field(
        default=36_000,
        ge=0,
        description="Seconds of CPU time that each process of a build step may use. 0: no limit.",
    )
    process_memory_mib: int = Field(
        default=0,
        ge=0,
        description="MiB of memory that each process of a build or an agent may use. 0: no limit but the "
        "machine's.",
    )
    process_files: int = Field(
        default=65_536,
        ge=0,
        description="Number of files that each process of a build or an agent may have open. 0: no limit.",
    )
    user_processes: int = Field(
        default=16_384,
        ge=0,
        description="Number of processes and threads that the provisioner's user may have in total; builds "
        "and agents can start no more. Does not apply to root. 0: no limit.",
    )
    file_size_mib: int = Field(
        default=65_536,
        ge=0,
        description="MiB that each file which a build or an agent writes may have. 0: no limit.",
    )


def read_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Return the settings under command-line flags, as `vars()` of what argparse found.

    A flag that is None or empty was not given; one that is no setting is somebody else's.
    Raises InvalidSettings.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in (flags or {}).items()
        if name in Settings.model_fields and value not in (None, "")
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = (
            f"{_PREFIX}{str(fault['loc'][0]).upper()} is {str(fault['input'])!r}: "
            f"{fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise InvalidSettings("; ".join(faults)) from error


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that looks like a setting and is none."""
    known = [f"{_PREFIX}{name.upper()}" for name in Settings.model_fields]
    strange = sorted(
        name
        for name in environ
        if name.startswith(_PREFIX)
        and name not in known
        and (said := name.removeprefix(_PREFIX)) not in _OF_SCRIPTS
        and not said.startswith(_OF_PARAMETERS)
    )
    return [
        f"the variable {name} is no setting of workspaced and has no effect"
        + "".join(f"; did you mean {near}?" for near in get_close_matches(name, known, 1, 0.8))
        for name in strange
    ]


def variable(name: str) -> str:
    """Return a setting's variable, with the flag that is over it."""
    return f"{_PREFIX}{name.upper()} (--{name.replace('_', '-')})"


def variables() -> str:
    """Return every variable of the environment with what it is for, as `--help` shows them."""
    lines = ["environment:"]
    for name, field in Settings.model_fields.items():
        words = field.description or ""
        if (usual := field.default) not in (None, ""):
            words += f" Default: {f'{usual:g}' if isinstance(usual, float) else usual}."
        lines.append(f"  {_PREFIX}{name.upper()}")
        lines += wrap(words, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"
