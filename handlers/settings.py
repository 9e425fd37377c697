"""What a process can be told: the only reader of `WORKSPACED_*` in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

_PREFIX: Final = "WORKSPACED_"
Seconds = Annotated[float, Field(ge=0.1, le=30 * 24 * 3600, allow_inf_nan=False)]
"""How long, 30 days at most; decimals allowed."""

Place = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path, in which `~` is the user's home."""


class InvalidSettings(ValueError):
    """A flag or a variable has a value that can't be used; the message names each."""


class Settings(BaseSettings):
    """Flag over environment over default, read once by the composition root."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, frozen=True)

    nats_url: str | None = Field(
        default=None,
        description="NATS to use, several servers with commas between; none: the embedded one.",
    )
    database_url: str | None = Field(
        default=None, description="PostgreSQL to use; none: the embedded one."
    )
    credentials: Place | None = Field(
        default=None,
        description="File with the NKey seed to connect with; none: that of the data directory.",
    )
    data_dir: Place = Field(
        default=Path("~/.local/share/workspaced"),
        validate_default=True,
        description="Where `up` keeps its servers, ports, credentials and workspaces.",
    )
    build_timeout: Seconds = Field(
        default=600.0, description="How many seconds a build may take before its chat fails."
    )
    agent_connect_timeout: Seconds = Field(
        default=120.0,
        description="How many seconds the chosen agent may take to connect before its chat fails.",
    )
    orphan_grace: Seconds = Field(
        default=900.0,
        description="How many seconds a workspace that no chat has may run before it is stopped.",
    )
    startup_scripts_timeout: Seconds = Field(
        default=600.0,
        description="How many seconds startup scripts may take before their chat fails.",
    )
    workspaces_per_owner: int = Field(
        default=1000,
        ge=0,
        description="How many workspaces an owner may have on a local provisioner's machine, "
        "stopped ones too; 0: no limit.",
    )
    disk_per_owner_mib: int = Field(
        default=0,
        ge=0,
        description="How many MiB of disk all workspaces of an owner may use on a local "
        "provisioner's machine, looked at before and after each start build; 0: no limit.",
    )


def read_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Return the settings under command-line flags, as `vars()` of what argparse found.

    A flag that is None was not given; one that is no setting is somebody else's.
    Raises InvalidSettings.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in (flags or {}).items()
        if name in Settings.model_fields and value is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = (
            f"{_PREFIX}{str(fault['loc'][0]).upper()} is {fault['input']!r}: {fault['msg']}"
            for fault in error.errors()
        )
        raise InvalidSettings("; ".join(faults)) from error


def variables() -> str:
    """Return every variable of the environment with what it is for, as `--help` shows them."""
    lines = ["environment:"]
    for name, field in Settings.model_fields.items():
        words = field.description or ""
        if (usual := field.default) is not None:
            words += f" Default: {f'{usual:g}' if isinstance(usual, float) else usual}."
        lines.append(f"  {_PREFIX}{name.upper()}")
        lines += wrap(words, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"
