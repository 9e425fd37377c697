"""Models that check the arguments of the tools.

docs/schemas is generated from these models: run `make schemas` after a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from statemachine.events import Frozen
from statemachine.leniency import UnreadableError, read
from statemachine.naming import is_uuid
from statemachine.parameters import TextValue


def _given(values: object) -> object:
    """Remove parameters whose value is null, which means "not given". An empty text is a value."""
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if value is not None}


_Written = str | float | bool | list[str] | None
"""The JSON types that a call may use for the value of a parameter."""
Values = Annotated[
    dict[str, TextValue],
    Field(max_length=256),
    BeforeValidator(
        _given, json_schema_input_type=Annotated[dict[str, _Written], Field(max_length=256)]
    ),
]


class NoArguments(Frozen):
    """The arguments of stop_workspace: none."""


class CreateArguments(NoArguments):
    """The arguments of create_workspace."""

    template_id: str | None = None
    """Required: the id of a template, as list_templates lists it."""
    name: str | None = None
    """The workspace's name. If it is absent or not valid, workspaced generates one; a name that is
    not valid is the basis of the generated one."""
    parameters: Values | None = None
    """Values by parameter name; read_template lists the parameters. Null means "not given"."""
    preset_id: str | None = None
    """The id of a preset, as read_template lists it. Its values apply to parameters that are absent
    from `parameters`."""

    def problem(self) -> str | None:
        """Return the error message for a missing or malformed id, or None if both ids are fine."""
        if problem := _template_problem(self.template_id):
            return problem
        if self.preset is not None and not is_uuid(self.preset):
            return f"preset_id {self.preset_id!r} is not a UUID; read_template lists the presets"
        return None

    @property
    def template(self) -> str:
        """The template's id in canonical form."""
        return (self.template_id or "").strip().lower()

    @property
    def preset(self) -> str | None:
        """The preset's id in canonical form; None if it is absent or blank."""
        return (self.preset_id or "").strip().lower() or None


class StartArguments(NoArguments):
    """The arguments of start_workspace."""

    parameters: Values | None = None
    """New values of mutable parameters, by name. A parameter that is absent keeps its last
    value."""


class ListArguments(NoArguments):
    """The arguments of list_templates."""

    query: str | None = None
    """Part of a name, display name or description; letter case does not matter. If it is absent,
    all templates are listed."""
    page: int | None = None
    """Number of the page, from 1. If it is absent, the first page is returned."""


class ReadArguments(NoArguments):
    """The arguments of read_template."""

    template_id: str | None = None
    """Required: the id of a template, as list_templates lists it."""

    def problem(self) -> str | None:
        """Return the error message for a missing or malformed id, or None if the id is fine."""
        return _template_problem(self.template_id)

    @property
    def id(self) -> str:
        """The template's id in canonical form."""
        return (self.template_id or "").strip().lower()


def _template_problem(template_id: str | None) -> str | None:
    if not (template_id or "").strip():
        return "template_id is required; use list_templates to find one"
    if not is_uuid(template_id or ""):
        return f"template_id {template_id!r} is not a UUID; use list_templates to find one"
    return None


@dataclass(frozen=True, slots=True)
class BadArguments:
    """The arguments have the wrong shape."""

    message: str


Model = TypeVar("Model", bound=NoArguments)


def arguments(model: type[Model], args: dict[str, Any]) -> Model | BadArguments:
    """Check the `args` of a call, and return them as a `model`, or what is wrong with them."""
    try:
        return read(model, args, "args")
    except UnreadableError as error:
        return BadArguments(str(error))
