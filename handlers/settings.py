"""The settings of a process: flags over `WORKSPACED_*` variables over defaults.

A new setting is a field of `Settings` (and an entry in `SETTING_FLAGS` if it is also a flag); its
description becomes the help of flag and variable, and the table in docs/operators.md.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from handlers.errors import InvalidSettings
from handlers.setting_flags import DEFAULT_ORGANIZATION, PREFIX, SETTING_FLAGS
from statemachine.naming import is_uuid

TABLE_START: Final = "<!-- settings: written by `make settings` -->"
TABLE_END: Final = "<!-- end of settings -->"
Seconds = Annotated[float, Field(ge=0.1, le=30 * 24 * 3600, allow_inf_nan=False)]
"""A number of seconds from 0.1 to 30 days."""

_DEFAULT_DATA_DIR: Final = Path("~/.local/share/workspaced")
_SCRIPT_VARIABLES: Final = (
    *("CHAT_ID", "WORKSPACE_ID", "WORKSPACE_NAME", "WORKSPACE_DIRECTORY", "BUILD_ID", "TRANSITION"),
    *("OWNER_NAME", "TEMPLATE_NAME", "AGENT_ID", "AGENT_NAME", "ERROR_FILE", "AGENT_LAUNCHER"),
)
"""Variables that provisioners set for a template's scripts, which may call `workspaced`."""
_PARAMETER_PREFIX: Final = "PARAM_"


def expanded(path: Path) -> Path:
    """Return the path with the user's home directory in place of `~`.

    Raises ValueError if the home directory is unknown, except for the default data directory, which is
    then below `/`: that is where container engines put the home of a user without an entry in
    /etc/passwd, and commands that do not use the directory then work.
    """
    try:
        if path.parts[:1] == ("~",) and os.environ.get("HOME") == "":
            return Path(pwd.getpwuid(os.getuid()).pw_dir, *path.parts[1:])
        return path.expanduser()
    except (RuntimeError, KeyError):
        if path == _DEFAULT_DATA_DIR:
            return Path("/", *path.parts[1:])
        raise ValueError(
            f"neither HOME nor /etc/passwd names the home directory {path.parts[0]}: set HOME, or "
            "give an absolute path"
        ) from None


ExpandedPath = Annotated[Path, AfterValidator(expanded)]
"""A path in which a leading `~` is replaced."""


def _organization_id(text: str) -> str:
    """Return an organization's id in canonical form. Raises ValueError."""
    if not is_uuid(text):
        raise ValueError("it must be a UUID")
    return text.strip().lower()


class Settings(BaseSettings):
    """All settings; read them with `read_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    nats_url: str | None = Field(
        default=None,
        repr=False,
        description=SETTING_FLAGS["nats_url"].description,
    )
    database_url: str | None = Field(
        default=None,
        repr=False,
        description=SETTING_FLAGS["database_url"].description,
    )
    organization: Annotated[str, AfterValidator(_organization_id)] | None = Field(
        default=None,
        description=SETTING_FLAGS["organization"].description,
    )
    nats_ca: ExpandedPath | None = Field(
        default=None,
        description=SETTING_FLAGS["nats_ca"].description,
    )
    tls_certificate: ExpandedPath | None = Field(
        default=None,
        description=SETTING_FLAGS["tls_certificate"].description,
    )
    tls_key: ExpandedPath | None = Field(
        default=None, description=SETTING_FLAGS["tls_key"].description
    )
    websocket_origins: str | None = Field(
        default=None,
        description="Web pages that may use the WebSocket of `up`, as https://host, separated by commas. If "
        "it is not set, any page may, but still needs a key.",
    )
    http_hosts: str | None = Field(
        default=None,
        description="Host names, without port, under which clients reach the gateway's HTTP interface, separated "
        "by commas. Its address and `localhost` are always accepted.",
    )
    http_origins: str | None = Field(
        default=None,
        description="Web pages of other sites that may use the HTTP interface, as https://host, separated by "
        "commas. They still need a token.",
    )
    credentials: ExpandedPath | None = Field(
        default=None,
        description=SETTING_FLAGS["credentials"].description,
    )
    data_dir: ExpandedPath = Field(
        default=_DEFAULT_DATA_DIR,
        validate_default=True,
        description=SETTING_FLAGS["data_dir"].description,
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
        description="Seconds that a workspace without a chat may run before workers stop it.",
    )
    startup_scripts_timeout: Seconds = Field(
        default=600.0,
        description="Seconds that startup scripts may take before their chat becomes `failed`.",
    )
    cancel_timeout: Seconds = Field(
        default=60.0,
        description="Seconds that a provisioner may take to end a canceled build before its chat becomes "
        "`failed`.",
    )
    transaction_timeout: Seconds = Field(
        default=5.0,
        description="Seconds after which PostgreSQL ends a statement or a transaction of a role.",
    )
    ack_wait: Seconds = Field(
        default=5.0,
        description="Seconds after which NATS redelivers an event that no worker has acknowledged.",
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
    mcp_wait: Seconds = Field(
        default=45.0,
        description="Seconds after which a request of an MCP client without tasks is answered although its call goes "
        "on. Choose less than the time after which your clients give up.",
    )
    mcp_wait_with_progress: Seconds = Field(
        default=210.0,
        description="The same for a client that asks for progress notifications.",
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


def organization_of(settings: Settings) -> str:
    """Return the id of the organization that a command acts for."""
    return settings.organization or DEFAULT_ORGANIZATION


def read_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Return the settings; `flags` are the arguments of a command by name.

    Ignores flags that are None or empty, and arguments that are not settings. Raises InvalidSettings.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in (flags or {}).items()
        if name in Settings.model_fields and value not in (None, "")
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = (
            f"{PREFIX}{str(problem['loc'][0]).upper()} is {str(problem['input'])!r}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        )
        raise InvalidSettings("; ".join(problems)) from error


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each `WORKSPACED_` variable that is not a setting."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    unknown = sorted(
        name
        for name in environ
        if name.startswith(PREFIX)
        and name not in known
        and (short := name.removeprefix(PREFIX)) not in _SCRIPT_VARIABLES
        and not short.startswith(_PARAMETER_PREFIX)
    )
    return [
        f"the variable {name} is not a setting of workspaced and has no effect"
        + "".join(f"; did you mean {near}?" for near in get_close_matches(name, known, 1, 0.8))
        for name in unknown
    ]


def describe_variables(names: Collection[str]) -> str:
    """Return the section of `--help` that describes the variables of these settings."""
    lines = ["environment:"]
    for name, field in Settings.model_fields.items():
        if name not in names:
            continue
        text = field.description or ""
        if default := _default(name):
            text += f" Default: {default}."
        lines.append(f"  {PREFIX}{name.upper()}")
        lines += wrap(text, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """Return all settings as the Markdown table of docs/operators.md."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        flag = f" (`--{name.replace('_', '-')}`)" if name in SETTING_FLAGS else ""
        lines.append(f"| `{PREFIX}{name.upper()}`{flag} | {_default(name)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _default(name: str) -> str:
    """Return the default of a setting as text; empty if there is none."""
    default = Settings.model_fields[name].default
    if default is None:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def write_settings_table(file: Path) -> None:
    """Replace the table of settings in a Markdown file."""
    before, _, rest = file.read_text().partition(TABLE_START)
    file.write_text(
        f"{before}{TABLE_START}\n{settings_table()}{TABLE_END}{rest.partition(TABLE_END)[2]}"
    )


if __name__ == "__main__":
    write_settings_table(Path(sys.argv[1]))
