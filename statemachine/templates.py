"""Templates: `template.toml` (contract §8) read and checked, and the catalog that calls are judged by."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Annotated, Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from statemachine import naming
from statemachine.events import Frozen, Label, Text, Token
from statemachine.messages import Spec
from statemachine.parameters import Parameter, TextValue, misfit

MAX_DEPTH: Final = 16
"""Nesting of a template.toml: a job, in which it is deeper still, must be readable."""
PARAMETERS: Final = 500
EXPRESSION: Final = 1_000
"""Characters of a validation_regex."""
README_LIMIT: Final = 8_000
"""Characters of a README that read_template shows."""


class TemplateError(Exception):
    """The folder is no template; the text says which file, which key, and what was expected."""


class _Declared(Frozen):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Preset(_Declared):
    """Values under a name."""

    name: Label
    default: bool = False
    description: str | None = None
    parameters: dict[str, TextValue] = Field(default_factory=dict)


class LocalAgent(_Declared):
    """An `[[agent]]` table as the local provisioner reads it."""

    name: Label
    parent: str | None = None
    display_order: int = 0
    startup_script: str = ""
    startup_timeout_seconds: float = Field(default=600, gt=0)
    shutdown_script: str = ""
    shutdown_timeout_seconds: float = Field(default=60, gt=0)
    env: dict[str, TextValue] = Field(default_factory=dict)


class LocalBuild(_Declared):
    """The `[build]` table as the local provisioner reads it: shell commands."""

    start: str
    stop: str = "true"
    delete: str = "true"


LOCAL_POOL: Final = "local"
"""The pool of the provisioner that `workspaced up` runs; `[build]` and `[[agent]]` are its to read."""


class Manifest(_Declared):
    """template.toml."""

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
        """What a job carries of it."""
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
    """A template by its active version."""

    id: str
    organization_id: str
    active: Version

    @property
    def name(self) -> str:
        """Unique in its organization."""
        return self.active.manifest.name

    def preset_id(self, preset: Preset) -> str:
        """Return the preset's id, the same for its name in every version."""
        return str(uuid5(UUID(self.id), f"preset/{preset.name}"))


@dataclass(frozen=True, slots=True)
class Catalog:
    """The templates that the calls in hand may speak of."""

    templates: Mapping[str, Template]
    versions: Mapping[str, Version]
    """Also versions that are not active any more, as builds used them."""


def template_id(organization_id: str, name: str) -> str:
    """Return the id of the template of that name, the same at every push."""
    return str(uuid5(NAMESPACE_URL, f"workspaced:template/{organization_id}/{name.lower()}"))


def read(text: str, *, file: str = "template.toml") -> Manifest:
    """Parse a template.toml. Raises TemplateError that names every wrong key."""
    try:
        table = tomllib.loads(text)
    except ValueError as bad:  # also a number of too many digits
        raise TemplateError(f"{file}: not TOML: {bad}") from None
    except RecursionError:
        raise TemplateError(f"{file}: nested deeper than {MAX_DEPTH}") from None
    try:
        manifest = Manifest.model_validate(_plain(table))
        _small(manifest)
        if manifest.pool == LOCAL_POOL:
            _local(manifest)
    except TemplateError as bad:
        raise TemplateError(f"{file}: {bad}") from None
    except ValidationError as bad:
        raise TemplateError("\n".join(_words(file, bad, text))) from None
    return manifest


def _small(manifest: Manifest) -> None:
    """Bound what each call costs. Only of what is pushed: what is stored must be read for ever."""
    if len(manifest.parameter) > PARAMETERS:
        raise TemplateError(f"parameter: {len(manifest.parameter)}; at most {PARAMETERS} are taken")
    for parameter in manifest.parameter:
        if len(parameter.validation_regex or "") > EXPRESSION:
            raise TemplateError(
                f"parameter {parameter.name!r}: validation_regex has more than {EXPRESSION} characters"
            )


def _local(manifest: Manifest) -> None:
    problems: list[Any] = []
    tables: list[tuple[tuple[str | int, ...], type[_Declared], dict[str, Any]]] = [
        (("build",), LocalBuild, manifest.build),
        *((("agent", n), LocalAgent, agent) for n, agent in enumerate(manifest.agent)),
    ]
    for where, model, table in tables:
        try:
            model.model_validate(table)
        except ValidationError as bad:
            problems += [
                {
                    "type": e["type"],
                    "loc": (*where, *e["loc"]),
                    "input": e["input"],
                    "ctx": e.get("ctx", {}),
                }
                for e in bad.errors()
            ]
    names = [agent.get("name") for agent in manifest.agent]
    for number, agent in enumerate(manifest.agent):
        for key, wrong, words in (
            ("name", names.count(agent.get("name")) > 1, "another agent has that name"),
            ("parent", agent.get("parent") not in (None, *names), "no agent has that name"),
        ):
            if wrong:
                problem = PydanticCustomError("agents", words)
                problems.append({"type": problem, "loc": ("agent", number, key), "input": agent})
    if problems:
        raise ValidationError.from_exception_data("template", problems)


def _plain(value: Any, path: str = "", depth: int = 0) -> Any:
    """Make a job's JSON of TOML: dates become text, and what no store can hold is refused."""
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
        case date() | time():
            return value.isoformat()
        case str() if "\0" in value:
            raise TemplateError(f"{path}: a text contains NUL")
        case int() if value.bit_length() > 63:  # noqa: PLR2004 — what TOML promises
            raise TemplateError(f"{path}: the number is too large")
        case float() if not math.isfinite(value):
            raise TemplateError(f"{path}: the number is not finite")
        case _:
            return value


def _words(file: str, bad: ValidationError, text: str) -> list[str]:
    lines = []
    for error in bad.errors(include_url=False):
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).lstrip(
            "."
        )
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "there is no such key"
        elif error["type"] == "missing":
            message = "the key is missing"
        line = _line_of(error["loc"], text)
        lines.append(f"{file}{f':{line}' if line else ''}: {path or 'template'}: {message}")
    return lines


def _line_of(location: tuple[int | str, ...], text: str) -> int | None:
    """Find the line of a key: tomllib tells none, so count the tables of that name."""
    tables = [part for part in location if isinstance(part, str)]
    if not tables:
        return None
    index = next((part for part in location if isinstance(part, int)), None)
    start, seen = (0, -1) if len(location) == 1 else (None, -1)
    for number, line in enumerate(text.splitlines()):
        if len(location) == 1 and line.lstrip().startswith("["):
            return None  # a key of the top level stands before the first table
        if re.match(rf"\s*\[\[?\s*{re.escape(tables[0])}\s*\]\]?", line):
            seen += 1
            start = number if seen == (index or 0) else start
        elif (
            start is not None
            and number >= start
            and re.match(rf"\s*{re.escape(tables[-1])}\s*=", line)
        ):
            return number + 1
    return None if start is None or len(location) == 1 else start + 1


def shown_readme(text: str) -> str:
    """Return a README as a model reads it: no front matter, no images, at most README_LIMIT."""
    body = re.sub(r"\A\ufeff?---\r?\n.*?\r?\n---[ \t]*(\r?\n|\Z)", "", text, flags=re.DOTALL)
    body = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", "", body)
    body = re.sub(r"<img\b[^>]*>", "", body, flags=re.IGNORECASE)
    return body.strip()[:README_LIMIT]
