"""The settings that are also flags of commands: one description for the flag and the variable.

Apart from `handlers.settings`, because `--help` must not wait for the import of pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class SettingFlag(NamedTuple):
    """The flag of a setting."""

    metavar: str
    description: str
    default: str = ""
    """The default as `--help` shows it; empty if there is none, or the description states it."""


PREFIX: Final = "WORKSPACED_"
"""The prefix of all variables."""
DEFAULT_ORGANIZATION: Final = "8fcadcc8-3807-5396-9df9-e5afb8474e7d"
"""The organization of commands if nothing names one: the UUIDv5 (URL namespace) of
`workspaced:organization:default`."""

DEFAULT_OWNER: Final = "0c5d1a5e-0000-4000-8000-000000000002"
"""The owner of chats for commands, and for the page, that name none."""
DEFAULT_OWNER_NAME: Final = "me"

SETTING_FLAGS: Final[Mapping[str, SettingFlag]] = {
    "data_dir": SettingFlag(
        "DIR",
        "Directory in which `up` keeps its servers, ports, credentials and workspaces.",
        "~/.local/share/workspaced",
    ),
    "nats_url": SettingFlag(
        "URL",
        "URL of the NATS server, or URLs of several servers of a cluster, separated by commas. "
        "If it is not set, `up` starts a NATS server, and other commands use that one.",
    ),
    "database_url": SettingFlag(
        "URL",
        "URL of the PostgreSQL database. If it is not set, `up` starts a PostgreSQL server, and other "
        "commands use that one.",
    ),
    "organization": SettingFlag(
        "UUID",
        "Organization that commands act for. If it is not set, they act for the default organization, and "
        "`chat list` lists the chats of all organizations.",
    ),
    "nats_ca": SettingFlag(
        "FILE",
        "PEM file with the CA certificates that signed the certificate of NATS. If it is not set, the "
        "CA certificates of this machine apply.",
    ),
    "credentials": SettingFlag(
        "PATH",
        "File with the NKey seed to connect to NATS with, or a folder with <role>.nk of each role. If "
        "it is not set, the seeds in the data directory are used.",
    ),
    "tls_certificate": SettingFlag(
        "FILE",
        "PEM file with the TLS certificate of every listener of this process and of the NATS server "
        "that `up` starts. If it is not set, listeners accept connections from this machine only.",
    ),
    "tls_key": SettingFlag("FILE", "PEM file with the private key of that certificate."),
}


def variable(name: str) -> str:
    """Return the variable of a setting, with the flag that overrides it."""
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')})"
