"""Declaring commands as classes, and the argparse parser made from them.

A command is a subclass of `Command`: its docstring is its help, and each attribute made by `flag`,
`switch`, `positional` or `setting` is one of its arguments. `--help` must be fast, so nothing slow to
import, such as pydantic, is imported here.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import uuid4

from handlers.setting_flags import SETTING_FLAGS
from handlers.shared_settings import milliseconds
from statemachine.naming import is_canonical

_CALL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_FILE_COMPLETION: Final = {
    "bash": "_shtab_compgen_files",
    "zsh": "_files",
    "fish": "(__fish_complete_path (commandline -ct))",
}
"""The value of `shtab.FILE`. Only `workspaced completion` imports `shtab`."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A flag or positional argument of a command."""

    names: tuple[str, ...]
    """The flag and its aliases; empty for a positional argument."""
    options: Mapping[str, Any]
    """Options of `argparse.ArgumentParser.add_argument`."""
    group: str | None = None
    """The heading in `--help`, if it is not the usual one."""
    selects: bool = False
    """Whether the command acts on more without it, so that an empty value must not count as absent."""


def flag(*names: str, help: str, **options: Any) -> Any:  # noqa: A002 — as argparse names it
    """Declare a flag with a value; `options` are those of `add_argument`."""
    return Argument(names, {"help": help, **options})


def selector(*names: str, help: str, **options: Any) -> Any:  # noqa: A002
    """Declare a flag that limits what a command deletes or grants: an empty value is refused."""
    return Argument(names, {"help": help, **options}, selects=True)


def switch(*names: str, help: str) -> Any:  # noqa: A002
    """Declare a flag without a value."""
    return Argument(names, {"help": help, "action": "store_true"})


def positional(metavar: str, *, help: str, **options: Any) -> Any:  # noqa: A002
    """Declare a positional argument; `options` are those of `add_argument`."""
    return Argument((), {"help": help, "metavar": metavar, **options})


def setting(name: str, group: str | None = None) -> Any:
    """Declare the flag of a setting, which overrides the setting's variable."""
    metavar, description, default = SETTING_FLAGS[name]
    shown_default = f"; default: {default}" if default else ""
    text = f"{description.rstrip('.')} (WORKSPACED_{name.upper()}{shown_default})"
    if text[1].islower():
        text = text[0].lower() + text[1:]
    flag_name = f"--{name.replace('_', '-')}"
    return Argument((flag_name,), {"help": text, "metavar": metavar}, group)


class Command:
    """A command of `workspaced` and its parsed arguments.

    The first line of the docstring is the summary in the list of commands; the whole docstring is the
    description in the command's own help.
    """

    name: ClassVar[str]
    """The words of the command, such as `chat list`."""
    function: ClassVar[str]
    """`module:function`, imported when the command runs; see `handlers.cli.dispatch`."""
    serves: ClassVar[bool] = False
    """Whether the command is a server that runs until it is stopped."""
    reads_settings: ClassVar[bool] = True
    """Whether the function takes the settings as its second argument."""
    variables: ClassVar[tuple[str, ...]] = ()
    """The settings without a flag that the command uses; `--help` describes their variables."""
    rest: ClassVar[str | None] = None
    """The positional argument that takes all words after `--`."""
    one_of: ClassVar[tuple[str, ...]] = ()
    """Arguments of which exactly one must be given."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        for name, _ in self.arguments():
            setattr(self, name, values[name])

    @classmethod
    def arguments(cls) -> Iterator[tuple[str, Argument]]:
        """Yield the arguments by attribute name, those of base classes last."""
        seen = set[str]()
        for owner in cls.__mro__:
            for name, value in vars(owner).items():
                if isinstance(value, Argument) and name not in seen:
                    seen.add(name)
                    yield name, value


class Parser(argparse.ArgumentParser):
    """Treats empty flags as absent, and reports unknown arguments with the usage of their command."""

    command: type[Command] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._negative_number_matcher = re.compile(r"-\d")  # argparse takes -5m for an unknown flag
        self.selectors: set[str] = set()
        """The flags whose value must not be empty."""

    def format_help(self) -> str:
        """Return the text of `--help`; that of a role also describes the settings that are not flags."""
        text = super().format_help()
        if self.command is None or not self.command.variables:
            return text
        from handlers.settings import describe_variables  # noqa: PLC0415 — slow to import

        return f"{text}\n{describe_variables(self.command.variables)}"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments; ends the process if one is unknown to this command."""
        args = self._drop_empty_flags(sys.argv[1:] if args is None else args)
        rest = self.command.rest if self.command else None
        after = args[args.index("--") + 1 :] if rest and "--" in args else []
        if after:
            args = args[: args.index("--")]
        found, unknown = super().parse_known_args(args, namespace)
        if rest and after:
            setattr(found, rest, [*getattr(found, rest), *after])
        if unknown:
            advice = "; put -- before the command" if rest else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
        return found, unknown

    def _drop_empty_flags(self, args: Sequence[str]) -> list[str]:
        """Leave out flags with an empty value, which an unset shell variable gives."""
        kept, words = list[str](), iter(args)
        for word in words:
            name, equals, value = word.partition("=")
            if word == "--":
                return [*kept, word, *words]
            if not self._takes_value(name):
                kept.append(word)
            else:
                given = [word] if equals else [word, *islice(words, 1)]
                empty = not value if equals else given[1:] == [""]
                if empty and not self.selectors.isdisjoint(self._meant(name)):
                    self.error(
                        f"argument {name}: its value is empty; leave it out if you mean all, or give a value"
                    )
                kept += [] if empty else given
        return kept

    def _takes_value(self, name: str) -> bool:
        meant = self._meant(name)
        return bool(meant) and all(
            self._option_string_actions[known].nargs is None for known in meant
        )

    def _meant(self, name: str) -> list[str]:
        """Return the flags that a word may mean: itself, or those that begin like it."""
        if not name.startswith("--"):
            return []
        known = self._option_string_actions
        return [name] if name in known else [flag for flag in known if flag.startswith(name)]


class _VersionAction(argparse.Action):
    """Prints the version, which takes time to find, only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 — slow to import

        sys.stdout.write(f"workspaced {version('workspaced')}\n")
        parser.exit()


def make_parser(
    commands: Sequence[type[Command]], groups: Mapping[str, str], *, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Return a parser of `commands`; its result has the class of the command as `command`, or None.

    `groups` has the summary of each first word that several commands share.
    """
    parser = Parser(prog="workspaced", description=description, epilog=epilog)
    parser.add_argument("--version", action=_VersionAction, nargs=0, help="print the version")
    parser.set_defaults(command=None)
    subparsers: dict[str, Any] = {"": parser.add_subparsers(title="commands", metavar="COMMAND")}
    for command in commands:
        group, _, name = command.name.rpartition(" ")
        if group not in subparsers:
            text = groups[group]
            words = subparsers[""].add_parser(
                group, help=text, description=f"{text[0].upper()}{text[1:]}."
            )
            subparsers[group] = words.add_subparsers(
                title="commands", metavar="COMMAND", required=True
            )
        # `python -OO` removes docstrings; commands work without their help.
        text = " ".join((command.__doc__ or command.name).split())
        summary = text.split(". ")[0].rstrip(".")
        words = subparsers[group].add_parser(
            name, help=f"{summary[0].lower()}{summary[1:]}", description=text
        )
        words.command = command
        words.set_defaults(command=command)
        _add_arguments(words, command)
    return parser


def _add_arguments(parser: Parser, command: type[Command]) -> None:
    one_of = parser.add_mutually_exclusive_group(required=True) if command.one_of else parser
    headings: dict[str, Any] = {}
    for name, argument in command.arguments():
        place = one_of if name in command.one_of else parser
        if argument.group is not None:
            if argument.group not in headings:
                headings[argument.group] = parser.add_argument_group(argument.group)
            place = headings[argument.group]
        if argument.names:
            action = place.add_argument(*argument.names, dest=name, **argument.options)
            parser.selectors |= set(argument.names if argument.selects else ())
        else:
            action = place.add_argument(name, **argument.options)
        if action.metavar in ("FILE", "DIR", "PATH"):
            action.complete = _FILE_COMPLETION  # type: ignore[attr-defined]


# Types of arguments: each reads a text, or raises ArgumentTypeError.


def file_name(text: str) -> str:
    """Read the name of a file; an empty name would mean the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a path")
    return text


def path(text: str) -> Path:
    """Read a path."""
    return Path(file_name(text))


def uuid(text: str) -> str:
    """Read a UUID."""
    if not is_canonical(text.lower()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a UUID, like 8fcadcc8-3807-5396-9df9-e5afb8474e7d"
        )
    return text.lower()


def known_chat(text: str) -> str:
    """Read the UUID of a chat that exists."""
    try:
        return uuid(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{error}; `workspaced chat list` prints the UUIDs of chats"
        ) from None


def signal_name(text: str) -> str:
    """Read the name of a signal, with or without SIG, or its number; return the name without SIG."""
    if text.isdecimal() and int(text) in set(signal.Signals):
        return signal.Signals(int(text)).name.removeprefix("SIG")
    return text.upper().removeprefix("SIG")


def chat_id(text: str) -> str:
    """Read the id of a chat, or make one for the word `new`."""
    return str(uuid4()) if text == "new" else uuid(text)


def call_id(text: str) -> str:
    """Read the id of a call, which must be a valid token of a subject."""
    if not _CALL_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a call id: use letters, digits, _ and -, 128 characters at most"
        )
    return text


def seconds(text: str) -> float:
    """Read a duration like `1h30m`, which must not be zero, in seconds."""
    try:
        found = milliseconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time at all: give more")
    return found / 1000


def positive(text: str) -> int:
    """Read a number above 0."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def port(text: str) -> int:
    """Read the number of a port."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return int(text)


def key_and_value(text: str) -> tuple[str, str]:
    """Read KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected a JSON object, like {"page": 2}')
    return value


def strict_json(text: str) -> Any:
    """Read JSON without NaN and infinite numbers. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=_reject_constant, parse_float=_finite)


def _reject_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _reject_constant(text)
