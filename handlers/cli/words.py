"""What every command's words are made of: where the servers are, and what a value may be.

Nothing heavy is imported here, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from statemachine.ids import is_canonical

ORGANIZATION: Final = "0c5d1a5e-0000-4000-8000-000000000001"
"""The organization of commands that name none: one machine, one team."""
OWNER: Final = "0c5d1a5e-0000-4000-8000-000000000002"
"""The owner in commands that name none."""
STATES: Final = (
    "none",
    "building",
    "agent_connecting",
    "scripts_running",
    "ready",
    "failed",
    "stopping",
    "stopped",
)
"""The states of the wire, named here because the table of states is slow to import."""
ROLES: Final = ("frontend", "chat-service", "provisioner", "operator", "worker", "gateway")
"""The roles that keys are issued for."""
_LISTENERS: Final = {
    "nats": "NATS",
    "websocket": "NATS's WebSocket",
    "http": "the HTTP server of /healthz and /readyz",
}
"""What a `--…-host` flag is about."""
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CALL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Parser(argparse.ArgumentParser):
    """Knows a command's words; of one that serves, `--help` tells the environment as well."""

    def format_help(self) -> str:
        """Return what `--help` shows."""
        words = super().format_help()
        if not self.get_default("tells_settings"):
            return words
        from handlers.settings import variables  # noqa: PLC0415 — slow, and wanted here only

        return f"{words}\n{variables()}"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is not known here, where the command's own usage can be shown."""
        args = self._without_empty(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _without_empty(self, args: Sequence[str]) -> list[str]:
        """Leave out flags with an empty value, as an unset variable of a shell gives."""
        kept, words = list[str](), iter(args)
        for word in words:
            flag, equals, value = word.partition("=")
            if word == "--":
                return [*kept, word, *words]
            if not self._takes_a_value(flag):
                kept.append(word)
            elif equals:
                kept += [word] * bool(value)
            else:
                following = next(words, None)
                kept += [word, *([] if following is None else [following])] * (following != "")
        return kept

    def _takes_a_value(self, flag: str) -> bool:
        if not flag.startswith("--"):
            return False
        options = self._option_string_actions
        meant = [options[flag]] if flag in options else []
        meant = meant or [options[name] for name in options if name.startswith(flag)]
        return bool(meant) and all(action.nargs is None for action in meant)


def add_command(
    commands: Any, command: str, words: str, more: str = "", *, somewhere: bool = True
) -> argparse.ArgumentParser:
    """Add a command that `dispatch` knows as `command`; `somewhere`: with the flags that say where."""
    name = command.rpartition(" ")[2]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=f"{words[0].upper()}{words[1:]}. {more}"
    )
    parser.set_defaults(command=command)
    if somewhere:
        _add_place(parser)
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("which servers to use")
    where.add_argument(
        "--data-dir",
        metavar="DIR",
        help="the data directory of `up` (WORKSPACED_DATA_DIR; default: ~/.local/share/workspaced)",
    )
    where.add_argument(
        "--nats-url",
        metavar="URL",
        help="the NATS server to use instead of the one that `up` runs (WORKSPACED_NATS_URL)",
    )
    where.add_argument(
        "--database-url",
        metavar="URL",
        help="the PostgreSQL database to use instead of the one that `up` runs "
        "(WORKSPACED_DATABASE_URL)",
    )
    where.add_argument(
        "--nats-ca",
        metavar="FILE",
        help="PEM file with the CA certificates that signed NATS's certificate (WORKSPACED_NATS_CA)",
    )
    where.add_argument(
        "--credentials",
        metavar="FILE",
        help="file with the NKey seed to connect with, or folder with <role>.nk (WORKSPACED_CREDENTIALS)",
    )


def add_group(commands: Any, name: str, words: str) -> Any:
    """Add a word that other commands begin with; return what takes them."""
    group = commands.add_parser(name, help=words)
    return group.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_host(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flag for the address that a listener binds to."""
    parser.add_argument(
        f"--{what}-host",
        metavar="ADDRESS",
        help=f"address on which {_LISTENERS[what]} accepts connections (default: 127.0.0.1, or ::1 "
        "without IPv4); any other address requires TLS",
    )


def add_listener(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the HTTP address and the TLS certificate of listeners."""
    add_host(parser, "http")
    parser.add_argument(
        "--tls-certificate", metavar="FILE", help="PEM file with the certificate of all listeners"
    )
    parser.add_argument(
        "--tls-key", metavar="FILE", help="PEM file with the private key of that certificate"
    )
    parser.add_argument(
        "--insecure-no-tls",
        dest="insecure",
        action="store_true",
        help="accept connections from other machines without TLS; use it only if something else, such as "
        "a private network, protects them",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag that prints JSON lines instead of tables."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON lines, as this command always does when stdout is not a terminal",
    )


def add_organization(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the organization that owns the templates."""
    parser.add_argument(
        "--organization",
        type=a_uuid,
        default=ORGANIZATION,
        metavar="UUID",
        help="the organization that owns the templates (default: the organization that all commands "
        "use unless you name one)",
    )


def a_file(text: str) -> str:
    """Read what names a file; an empty name would be the directory we are in."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a path")
    return text


def a_path(text: str) -> Path:
    """Read a path."""
    return Path(a_file(text))


def a_uuid(text: str) -> str:
    """Read a UUID."""
    if not is_canonical(text.lower()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a UUID, like 0c5d1a5e-0000-4000-8000-000000000001"
        )
    return text.lower()


def a_duration(text: str) -> float:
    """Read how many seconds `1h30m` is."""
    found = _DURATION.fullmatch(text)
    hours, minutes, seconds = map(float, found.groups(default="0")) if found else (0.0, 0.0, 0.0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration: write it like 90s, 1h or 1h30m"
        )
    return total


def a_port(text: str) -> int:
    """Read a port."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return int(text)


def a_chat(text: str) -> str:
    """Read a chat's UUID, or make one for `new`."""
    return str(uuid4()) if text == "new" else a_uuid(text)


def a_call_id(text: str) -> str:
    """Read a call's id, which is a part of a subject."""
    if not _CALL_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a call id: use letters, digits, _ and -, 128 characters at most"
        )
    return text


def strict_json(text: str) -> Any:
    """Read JSON that can be written as JSON again. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=_no_json, parse_float=_finite)


def _no_json(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_json(text)


def an_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = strict_json(text)
    except (ValueError, RecursionError) as bad:
        raise argparse.ArgumentTypeError(f"it is not JSON: {bad}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected a JSON object, like {"page": 2}')
    return value


def a_pair(text: str) -> tuple[str, str]:
    """Read K=V."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value
