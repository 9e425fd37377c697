"""Templates: parses and checks `template.toml` (docs/contract.md, section 8).

Also the catalog of templates with which calls are evaluated.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from typing import Annotated, Any, Final, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import Field, ValidationError, model_validator

from statemachine import naming
from statemachine.events import Label, Text, Token
from statemachine.local_template import (
    LOCAL_POOL,
    AgentTable,
    PushedAgent,
    PushedBuild,
    agent_faults,
    shared_variables,
)
from statemachine.mask import SHORTEST, is_short
from statemachine.messages import Spec
from statemachine.parameters import Declared, Kind, Parameter, TextValue, misfit, option_misfit

MAX_DEPTH: Final = 16
"""Maximum nesting of a template.toml.

A job contains its tables at a deeper level, and must not exceed the maximum nesting of events.
"""
PARAMETERS: Final = 500
EXPRESSION: Final = 1_000
"""Maximum number of characters of a validation_regex."""
README_LIMIT: Final = 8_000
"""Maximum number of characters of a README that read_template shows."""


class TemplateError(Exception):
    """The folder is not a valid template. The message names the file, the key and the fault."""


class Preset(Declared):
    """A named set of parameter values."""

    name: Label
    default: bool = False
    description: str | None = None
    parameters: dict[str, TextValue] = Field(default_factory=dict)


class Manifest(Declared):
    """The content of a template.toml."""

    name: str
    display_name: str | None = None
    description: Text | None = None
    pool: Token = LOCAL_POOL
    require_active_version: bool = False
    agents_allowed: bool = True
    parameter: Annotated[tuple[Parameter, ...], Field(strict=False)] = ()
    preset: Annotated[tuple[Preset, ...], Field(strict=False)] = ()
    build: dict[str, Any] = Field(default_factory=dict)
    agent: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if not naming.valid(self.name):
            raise ValueError(
                f"name: {self.name!r} is not valid; expected 1 to 32 of a-z, A-Z, 0-9, "
                "single hyphens between them, and neither 'new' nor 'create'"
            )
        for what, names in (
            ("parameter", [parameter.name for parameter in self.parameter]),
            ("preset", [preset.name for preset in self.preset]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{what}: the name {min(twice)!r} is used twice")
        if sum(preset.default for preset in self.preset) > 1:
            raise ValueError("preset: only one may be the default")
        declared = {parameter.name: parameter for parameter in self.parameter}
        for preset in self.preset:
            for name, value in preset.parameters.items():
                if name not in declared:
                    raise ValueError(f"preset {preset.name!r}: there is no parameter {name!r}")
                if problem := misfit(declared[name], value):
                    raise ValueError(f"preset {preset.name!r}: parameter {name!r}: {problem}")
        return self

    @property
    def spec(self) -> Spec:
        """The tables that a job contains."""
        return {"build": self.build, "agent": self.agent}


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable state of a template's folder."""

    id: str
    template_id: str
    manifest: Manifest
    readme: str | None
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Template:
    """A template with its active version."""

    id: str
    organization_id: str
    active: Version

    @property
    def name(self) -> str:
        """The template's name, unique in its organization."""
        return self.active.manifest.name

    def preset_id(self, preset: Preset) -> str:
        """Return the preset's id. A preset of the same name has the same id in every version."""
        return str(uuid5(UUID(self.id), f"preset/{preset.name}"))


@dataclass(frozen=True, slots=True)
class Catalog:
    """The templates and versions that the calls of a batch may need, by id."""

    templates: Mapping[str, Template]
    versions: Mapping[str, Version]
    """Includes versions that are no longer active, but which builds used."""


def template_id(organization_id: str, name: str) -> str:
    """Return the id of a template, which is derived from its organization and its name."""
    return str(uuid5(NAMESPACE_URL, f"workspaced:template/{organization_id}/{name.lower()}"))


def read(text: str, *, file: str = "template.toml") -> Manifest:
    """Parse and check a template.toml that is pushed.

    Error messages call it `file`. Raises TemplateError, which names every wrong key.
    """
    text = text.removeprefix("\ufeff")
    try:
        table = tomllib.loads(text)
    except ValueError as error:  # also raised for a number with too many digits
        raise TemplateError(f"{file}: not TOML: {error}") from None
    except RecursionError:
        raise TemplateError(f"{file}: nested deeper than {MAX_DEPTH}") from None
    try:
        plain = _plain(table)
    except TemplateError as error:
        raise TemplateError(f"{file}: {error}") from None
    problems = [*_non_text_values(table)]
    try:
        manifest = Manifest.model_validate(plain)
    except ValidationError as error:
        problems += _problems(error)
    else:
        problems += _push_problems(manifest)
    if plain.get("pool", LOCAL_POOL) == LOCAL_POOL:
        problems += _local_problems(table)
    if problems:
        raise TemplateError("\n".join(_describe(file, problems, text)))
    return manifest


class Problem(NamedTuple):
    """A fault in a template.toml: the path of the key, and a description."""

    where: tuple[str | int, ...]
    message: str


def _problems(invalid: ValidationError, *where: str | int) -> list[Problem]:
    """Return the faults that pydantic found in the table at path `where`."""
    found = []
    for error in invalid.errors(include_url=False, include_input=False):
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "there is no such key"
        elif error["type"] == "missing":
            message = "the key is missing"
        found.append(Problem((*where, *error["loc"]), message))
    return found


def _non_text_values(table: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the values of string parameters that are not TOML strings.

    As a TOML number, `3.10` would become the text `3.1`.
    """
    kinds: dict[object, object] = {}
    for index, parameter in _tables(table.get("parameter")):
        kind = parameter.get("type", Kind.STRING)
        kinds[str(parameter.get("name"))] = kind
        if message := _type_problem(kind, parameter.get("default", "")):
            yield Problem(("parameter", index, "default"), message)
        for number, option in _tables(parameter.get("options")):
            if message := _type_problem(kind, option.get("value", "")):
                yield Problem(("parameter", index, "options", number, "value"), message)
    for index, preset in _tables(table.get("preset")):
        values = preset.get("parameters")
        for name, value in values.items() if isinstance(values, dict) else ():
            if message := _type_problem(kinds.get(name), value):
                yield Problem(("preset", index, "parameters", name), message)


def _type_problem(kind: object, value: object) -> str | None:
    if kind == Kind.STRING and not isinstance(value, str):
        return "expected a text, since the parameter is a string: write it in quotes"
    return None


def _tables(value: object) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, table in enumerate(value if isinstance(value, list) else ()):
        if isinstance(table, dict):
            yield index, table


def _push_problems(manifest: Manifest) -> Iterator[Problem]:
    """Yield the faults that only a push refuses. Stored templates may have them, and stay valid."""
    if len(manifest.parameter) > PARAMETERS:
        message = f"{len(manifest.parameter)}; at most {PARAMETERS} are taken"
        yield Problem(("parameter",), message)
    for index, parameter in enumerate(manifest.parameter):
        where = ("parameter", index)
        if len(parameter.validation_regex or "") > EXPRESSION:
            message = f"has more than {EXPRESSION} characters"
            yield Problem((*where, "validation_regex"), message)
        least, most = parameter.validation_min, parameter.validation_max
        if least is not None and most is not None and least > most:
            yield Problem((*where, "validation_min"), f"is above validation_max, {most:g}")
        for number, option in enumerate(parameter.options):
            if problem := option_misfit(parameter, option.value):
                yield Problem((*where, "options", number, "value"), f"{option.name!r}: {problem}")
    for variable, names in shared_variables(parameter.name for parameter in manifest.parameter):
        listed = ", ".join(map(repr, names))
        message = f"{listed} would all be the environment variable {variable}: rename all but one"
        yield Problem(("parameter",), message)


def _local_problems(table: Mapping[str, Any]) -> list[Problem]:
    """Return the faults that the local provisioner would refuse, and the keys unknown to it."""
    problems: list[Problem] = []
    try:
        PushedBuild.model_validate(table.get("build", {}))
    except ValidationError as error:
        problems += _problems(error, "build")
    agents: list[AgentTable] = []
    for index, agent in _tables(table.get("agent")):
        try:
            agents.append(PushedAgent.model_validate(agent))
        except ValidationError as error:
            problems += _problems(error, "agent", index)
    if not problems:
        problems += [
            Problem(("agent", index, key), message) for index, key, message in agent_faults(agents)
        ]
    return problems


def warnings(manifest: Manifest) -> list[str]:
    """Return warnings for the author of a template: sensitive values that texts may show."""
    return [
        f"parameter {parameter.name!r} is sensitive, but {why}: "
        "only its own field is hidden then, and logs and messages may show it"
        for parameter in manifest.parameter
        if parameter.sensitive and (why := _reason_not_masked(manifest, parameter))
    ]


def _reason_not_masked(manifest: Manifest, parameter: Parameter) -> str | None:
    """Return why texts may show values of a sensitive parameter; None if all of them are hidden."""
    if parameter.type is Kind.BOOL:
        return "true and false are never hidden in texts"
    given = [("its default", parameter.default)]
    given += [(f"its option {option.name!r}", option.value) for option in parameter.options]
    for preset in manifest.preset:
        given.append(
            (f"its value in preset {preset.name!r}", preset.parameters.get(parameter.name))
        )
    short = [what for what, value in given if value and is_short(value)]
    if not short:
        return None
    verb = "is" if len(short) == 1 else "are"
    return (
        f"{', '.join(short)} {verb} shorter than {SHORTEST} characters, or a list with such a text"
    )


def _plain(value: Any, path: str = "", depth: int = 0) -> Any:
    """Return a parsed TOML value as the JSON value that a job can contain.

    Dates and times in the tables `[build]` and `[[agent]]` become texts; elsewhere they are left
    unchanged, and the models refuse them. Raises TemplateError for values that cannot be stored.
    """
    if depth > MAX_DEPTH:
        raise TemplateError(f"{path[:100]}: nested deeper than {MAX_DEPTH}")
    match value:
        case dict():
            return {
                _plain(key, f"{path}.{key!r}"): _plain(item, f"{path}.{key}".lstrip("."), depth + 1)
                for key, item in value.items()
            }
        case list():
            return [_plain(x, f"{path}[{number}]", depth + 1) for number, x in enumerate(value)]
        case date() | time() if path.startswith(("build.", "agent[")):
            return value.isoformat()
        case str() if "\0" in value:
            raise TemplateError(f"{path}: a text contains NUL")
        case int() if value.bit_length() > 63:  # noqa: PLR2004 — TOML guarantees 64 bits
            raise TemplateError(f"{path}: the number is too large")
        case float() if not math.isfinite(value):
            raise TemplateError(f"{path}: the number is not finite")
        case _:
            return value


def _describe(file: str, problems: Iterable[Problem], text: str) -> list[str]:
    lines = []
    for problem in problems:
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in problem.where)
        line = _line_of(problem.where, text)
        where = (
            f"{path.lstrip('.')}: " if path else ""
        )  # without a path, the message names the key itself
        lines.append(f"{file}{f':{line}' if line else ''}: {where}{problem.message}")
    return list(dict.fromkeys(lines))


def _line_of(location: tuple[int | str, ...], text: str) -> int | None:
    """Return the line number of a key, or of the table to which it belongs; None if not found.

    tomllib does not return line numbers.
    """
    keys = [part for part in location if isinstance(part, str)]
    lines = text.splitlines()
    if not keys:
        return None
    if len(location) == 1:
        return _line_with(keys[0], lines, 0)
    index = next((part for part in location if isinstance(part, int)), 0)
    header = re.compile(rf"\s*\[\[?\s*{re.escape(keys[0])}\s*\]\]?")
    starts = [number for number, line in enumerate(lines) if header.match(line)]
    if len(starts) <= index:
        return None
    start = starts[index]
    found = (_line_with(key, lines, start + 1, below=keys[0]) for key in reversed(keys[1:]))
    return next((number for number in found if number is not None), start + 1)


def _line_with(key: str, lines: Sequence[str], start: int, below: str = "") -> int | None:
    """Return the number of the line that sets `key` in the table whose content begins at `start`.

    The search continues in the subtables of the table `below`. Return None if no line sets the key.
    """
    for number, line in enumerate(lines[start:], start + 1):
        if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
        if re.match(r"\s*\[", line) and not (below and line.strip("[ \t").startswith(f"{below}.")):
            return None
    return None


def shown_readme(text: str) -> str:
    """Return a README without front matter and images, at most README_LIMIT characters."""
    body = re.sub(r"\A\ufeff?---\r?\n.*?\r?\n---[ \t]*(\r?\n|\Z)", "", text, flags=re.DOTALL)
    body = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", "", body)
    body = re.sub(r"<img\b[^>]*>", "", body, flags=re.IGNORECASE)
    return body.strip()[:README_LIMIT]
