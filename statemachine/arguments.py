"""The arguments of the tools, as models that check them.

docs/schemas is made from these models: run `make schemas` after a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from statemachine.events import Frozen
from statemachine.ids import is_uuid
from statemachine.leniency import UnreadableError, read
from statemachine.parameters import TextValue


def _given(values: object) -> object:
    """Leave out parameters that are null: they are not given. An empty text is a value."""
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if value is not None}


_Written = str | float | bool | list[str] | None
"""How a call may write the value of a parameter."""
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
    """The workspace's name; workspaced makes one up if it is absent, and a similar one if it is not valid."""
    parameters: Values | None = None
    """Values by the names of parameters, as read_template lists them; null means "not given"."""
    preset_id: str | None = None
    """The id of a preset, as read_template lists it; its values count where `parameters` has none."""

    def problem(self) -> str | None:
        """Say what is wrong before anything else is looked at."""
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
        """The preset's id in canonical form; a blank one is none."""
        return (self.preset_id or "").strip().lower() or None


class StartArguments(NoArguments):
    """The arguments of start_workspace."""

    parameters: Values | None = None
    """New values for mutable parameters, by name; the others keep their last value."""


class ListArguments(NoArguments):
    """The arguments of list_templates."""

    query: str | None = None
    """Part of a name, a display name or a description, in any case; absent: all templates."""
    page: int | None = None
    """Which page, from 1; absent: the first."""


class ReadArguments(NoArguments):
    """The arguments of read_template."""

    template_id: str | None = None
    """Required: the id of a template, as list_templates lists it."""

    def problem(self) -> str | None:
        """Say what is wrong with the id."""
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
    """Read a call's `args`."""
    try:
        return read(model, args, "args")
    except UnreadableError as bad:
        return BadArguments(str(bad))
