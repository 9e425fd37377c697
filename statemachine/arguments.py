"""Models that check the arguments of the tools, and what two requests of the same call have in common.

docs/schemas is generated from these models: run `make schemas` after a change.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, Field

from statemachine.events import Frozen
from statemachine.leniency import UnreadableError, read, unknown_keys
from statemachine.naming import is_uuid
from statemachine.parameters import TextValue
from statemachine.templates import Preset, Template, template_id

_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


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
    """The id of a template, as list_templates lists it. Required, unless `template` names one."""
    template: str | None = None
    """The name of a template, as list_templates lists it. Has no effect if `template_id` is given."""
    name: str | None = None
    """The workspace's name. If it is absent or not valid, workspaced generates one; a name that is
    not valid is the basis of the generated one."""
    parameters: Values | None = None
    """Values by parameter name; read_template lists the parameters. Null means "not given"."""
    preset_id: str | None = None
    """The id of a preset, as read_template lists it. Its values apply to parameters that are absent
    from `parameters`."""
    preset: str | None = None
    """The name of a preset, as read_template lists it. Has no effect if `preset_id` is given."""

    def problem(self) -> str | None:
        """Return the error message for a missing template or a malformed id, or None if there is none."""
        if _is_blank(self.template_id) and _is_blank(self.template):
            return "template_id or template is required; use list_templates to find one"
        if not _is_blank(self.template_id) and (problem := _template_problem(self.template_id)):
            return problem
        if not _is_blank(self.preset_id) and not is_uuid(self.preset_id or ""):
            return f"preset_id {self.preset_id!r} is not a UUID; read_template lists the presets"
        return None

    def template_of(self, organization_id: str) -> str:
        """Return the id of the wanted template, in canonical form. `problem` must have found nothing.

        A name becomes the id of the organization's template of that name, whether or not it exists.
        """
        if not _is_blank(self.template_id):
            return _canonical(self.template_id)
        return template_id(organization_id, (self.template or "").strip())

    @property
    def shown_template(self) -> str:
        """The wanted template, as the call names it."""
        return _canonical(self.template_id) or repr((self.template or "").strip())

    @property
    def wanted_preset(self) -> str | None:
        """The wanted preset, as the call names it: by id, otherwise by name; None if it names none."""
        return _canonical(self.preset_id) or (self.preset or "").strip() or None

    def preset_of(self, template: Template) -> Preset | None:
        """Return the wanted preset, or None if the template does not have it."""
        by_id, wanted = not _is_blank(self.preset_id), self.wanted_preset
        return next(
            (
                preset
                for preset in template.active.manifest.preset
                if wanted == (template.preset_id(preset) if by_id else preset.name.strip())
            ),
            None,
        )


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
        return _canonical(self.template_id)


ARGUMENTS: Final[Mapping[str, type[NoArguments]]] = {
    "create_workspace": CreateArguments,
    "start_workspace": StartArguments,
    "stop_workspace": NoArguments,
    "list_templates": ListArguments,
    "read_template": ReadArguments,
}
"""The tools, and the model of the arguments of each."""


def _is_blank(text: str | None) -> bool:
    return not (text or "").strip()


def _canonical(given: str | None) -> str:
    """Return an id that a call gives, in canonical form; empty if it gives none."""
    return (given or "").strip().lower()


def _template_problem(given: str | None) -> str | None:
    if _is_blank(given):
        return "template_id is required; use list_templates to find one"
    if not is_uuid(given or ""):
        return f"template_id {given!r} is not a UUID; use list_templates to find one"
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


def unknown_arguments(tool: str, args: Mapping[str, Any]) -> list[str]:
    """Return the keys of `args` that the tool does not have; none for a tool that does not exist."""
    model = ARGUMENTS.get(tool)
    return [] if model is None else unknown_keys(model, args)


def given_parameters(args: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters to which `args` give a value."""
    values = args.get("parameters")
    if not isinstance(values, dict):
        return []
    return [name for name, value in values.items() if value is not None]


def content_digest(key: bytes, chat_id: str, call_id: str, tool: str, args: dict[str, Any]) -> str:
    """Return a digest that identifies the content of a request: its tool and arguments.

    Requests that differ only in their spelling (`null` for an absent key, `4.0` for `4`), or in keys that
    the tool does not have, have the same content. The secret `key` is needed because arguments may be
    secrets: without it, values could be guessed and compared with the stored digest.
    """
    content = _ENCODER.encode([chat_id, call_id, tool, _content(tool, args)])
    return hmac.digest(key, content.encode(), "sha256").hex()[:32]


def _content(tool: str, args: dict[str, Any]) -> Any:
    model = ARGUMENTS.get(tool)
    if model is None:
        return _normalized(args)
    read_args = arguments(model, args)
    if isinstance(read_args, BadArguments):  # they have a content too: that of the tool's keys
        given = _normalized({name: args.get(name) for name in model.model_fields})
    else:
        given = read_args.model_dump()
    texts = {name: value.strip() for name, value in given.items() if isinstance(value, str)}
    ids = {name: text.lower() for name, text in texts.items() if name.endswith("_id")}
    return {name: v for name, v in (given | texts | ids).items() if v not in (None, "", {})}


def _normalized(value: Any) -> Any:
    """Return a JSON value without keys that are null, and with whole numbers as integers."""
    match value:
        case dict():
            return {key: _normalized(item) for key, item in value.items() if item is not None}
        case list():
            return [_normalized(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
