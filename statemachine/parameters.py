"""Parameters of templates: how they are declared, and which values are valid.

Values are texts (docs/contract.md, section 3, jobs): a bool is `true` or `false`, a list(string) is
a JSON array. A text is passed on unchanged. Two texts are compared by the values that they denote
(`same`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, Final

import re2
from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from statemachine.events import Frozen
from statemachine.mask import MASK, Mask
from statemachine.messages import Validation


def as_text(value: object) -> str:
    """Return a TOML or JSON value as the text that a job carries.

    A float without a fraction becomes an integer: `4.0` becomes `4`. Raises ValueError if the value
    is not a text, a finite number, a bool or a list of texts.
    """
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() else repr(value)
        case list() if all(isinstance(item, str) for item in value):
            return json.dumps(value, ensure_ascii=False)
        case _:
            raise ValueError("expected a text, a number, true or false, or a list of texts")


Bound = Annotated[float, Field(allow_inf_nan=False)]
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")

TextValue = Annotated[
    str, BeforeValidator(as_text, json_schema_input_type=str | float | bool | list[str])
]


class Kind(StrEnum):
    """The types of parameters (docs/contract.md, section 8)."""

    STRING = "string"
    NUMBER = "number"
    BOOL = "bool"
    STRINGS = "list(string)"


class Declared(Frozen):
    """A part of template.toml: unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Option(Declared):
    """One of the values that a parameter with options may have."""

    name: str
    value: TextValue
    description: str | None = None


class Parameter(Declared):
    """The declaration of a parameter in template.toml."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]
    type: Annotated[Kind, Field(strict=False)] = Kind.STRING
    display_name: str | None = None
    description: str | None = None
    default: TextValue | None = None
    required: bool = False
    mutable: bool = True
    sensitive: bool = False
    options: Annotated[tuple[Option, ...], Field(strict=False)] = ()
    validation_regex: str | None = None
    validation_min: Bound | None = None
    validation_max: Bound | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Parameter:
        if self.validation_regex is not None:
            try:
                compiled(self.validation_regex)
            except re2.error as error:
                raise ValueError(
                    f"validation_regex is not a valid RE2 expression: {_reason(error)}"
                ) from None
        ranged = self.validation_min is not None or self.validation_max is not None
        if ranged and self.type is not Kind.NUMBER:
            raise ValueError("validation_min and validation_max are for type 'number'")
        for option in self.options:
            if problem := _option_problem(self.type, option.value):
                raise ValueError(f"option {option.name!r}: {problem}")
        if self.default is not None and (problem := misfit(self, self.default)):
            raise ValueError(f"default: {problem}")
        return self


def _reason(bad: Exception) -> str:
    """Return the message of an RE2 error, which may be bytes."""
    said = bad.args[0] if bad.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


def compiled(expression: str) -> Any:
    """Compile an RE2 expression, which matches in linear time, without logging errors.

    Raises re2.error.
    """
    options = re2.Options()
    options.log_errors = False
    return re2.compile(expression, options)


def _texts(text: str) -> list[str] | None:
    """Parse a JSON array of texts.

    Return None if `text` is not such an array, or if one of the texts contains a lone surrogate.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return None
    lone = any("\ud800" <= letter <= "\udfff" for item in items for letter in item)
    return None if lone else items


def _of_type(kind: Kind, text: str, shown: str | None) -> str | None:
    match kind:
        case Kind.STRING:
            return None
        case Kind.NUMBER:
            fits = _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))
            return None if fits else f"{shown or repr(text)} is not a number"
        case Kind.BOOL:
            fits = text in ("true", "false")
            return None if fits else f"{shown or repr(text)} is neither true nor false"
        case Kind.STRINGS:
            fits = _texts(text) is not None
            return None if fits else f"{shown or repr(text)} is not a JSON array of texts"


def _option_problem(kind: Kind, value: str) -> str | None:
    """Return why `value` cannot be an option of a parameter of type `kind`, or None if it can.

    An option of a list(string) may be any text: it is one of the texts of a list, or a whole list.
    """
    return None if kind is Kind.STRINGS else _of_type(kind, value, None)


def misfit(parameter: Parameter, text: str) -> str | None:
    """Return why `text` is not a valid value of `parameter`, or None if it is valid.

    The description does not contain the value if the parameter is sensitive.
    """
    shown = MASK if parameter.sensitive else None
    if problem := _of_type(parameter.type, text, shown):
        return problem
    items = _texts(text) if parameter.type is Kind.STRINGS else None
    chosen = [text] if items is None else items
    kind = parameter.type
    if parameter.options and not any(
        same(kind, option.value, text) for option in parameter.options
    ):
        values = [option.value for option in parameter.options]
        if wrong := [item for item in chosen if item not in values]:
            return f"{shown or repr(wrong[0])} is none of the options: {', '.join(values)}"
    if parameter.validation_regex is not None:
        expression = compiled(parameter.validation_regex)
        if wrong := [item for item in chosen if expression.search(item) is None]:
            return f"{shown or repr(wrong[0])} does not match {parameter.validation_regex}"
    if parameter.type is Kind.NUMBER:
        if parameter.validation_min is not None and float(text) < parameter.validation_min:
            return f"{shown or text} is below {parameter.validation_min:g}"
        if parameter.validation_max is not None and float(text) > parameter.validation_max:
            return f"{shown or text} is above {parameter.validation_max:g}"
    return None


def same(kind: Kind, one: str, other: str) -> bool:
    """Return whether two texts denote the same value, like `4.0` and `4`, or two equal lists."""
    if one == other:
        return True
    match kind:
        case Kind.NUMBER:
            number = _number(one)
            return number is not None and number == _number(other)
        case Kind.STRINGS:
            texts = _texts(one)
            return texts is not None and texts == _texts(other)
        case Kind.STRING | Kind.BOOL:
            return False


def _number(text: str) -> Decimal | float | None:
    """Parse a number, exactly if possible; return None if `text` is not a number.

    A number whose exponent is too large or too small for a Decimal is returned as a float.
    """
    if _of_type(Kind.NUMBER, text, None) is not None:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return float(text)


def option_misfit(parameter: Parameter, text: str) -> str | None:
    """Return why the parameter's own validation refuses the option `text`, or None."""
    if parameter.type is Kind.STRINGS and _texts(text) is None:
        text = json.dumps([text])  # one of the texts of a list
    return misfit(parameter.model_copy(update={"options": ()}), text)


@dataclass(frozen=True, slots=True)
class Misfits:
    """The wrong fields, each with a description of its fault."""

    fields: tuple[tuple[str, str], ...]

    @property
    def validations(self) -> list[Validation]:
        """The wrong fields in the form that answers contain."""
        return [{"field": field, "detail": detail} for field, detail in self.fields]


@dataclass(frozen=True, slots=True)
class LastBuild:
    """The parameter values of the previous build, which a start carries over."""

    values: Mapping[str, str]
    declared: tuple[Parameter, ...] = ()
    """The parameters of the previous build's template version; empty if the version is unknown."""

    def value(self, parameter: Parameter) -> str | None:
        """Return the value that the previous build had for `parameter`; None if it had none.

        A job carries an empty text for a parameter without a value. So an empty text counts as a
        value only if the parameter had a default and the empty text was valid.
        """
        value = self.values.get(parameter.name)
        if value != "":
            return value
        then = next((p for p in self.declared if p.name == parameter.name), parameter)
        return None if then.default is None or misfit(then, "") is not None else value


def resolve(
    declared: tuple[Parameter, ...],
    asked: Mapping[str, str],
    fallbacks: tuple[Mapping[str, str], ...] = (),
    *,
    last: LastBuild | None = None,
) -> dict[str, str] | Misfits:
    """Return a value for every declared parameter, or all faults of the given values.

    The value is the one in `asked` (the call's), otherwise the one in the first of the `fallbacks`
    that has one, otherwise the default. For start_workspace, `last` has the values of the previous
    build. A parameter that is not mutable keeps its previous value, even if it is no longer valid.
    For other parameters a valid previous value has precedence over the default.
    """
    names = {parameter.name for parameter in declared}
    wrong = [(name, "the template has no such parameter") for name in asked if name not in names]
    values: dict[str, str] = {}
    for parameter in declared:
        name = parameter.name
        carried = last.value(parameter) if last is not None else None
        given = next((source[name] for source in (asked, *fallbacks) if name in source), None)
        if carried is not None and not parameter.mutable:
            if given is not None and not same(parameter.type, given, carried):
                wrong.append((name, "can't be changed after the workspace was created"))
            values[name] = carried
            continue
        unfit = misfit(parameter, carried) if carried is not None else None
        options = (given, None if unfit else carried, parameter.default)
        value = next((value for value in options if value is not None), None)
        if value is not None and (problem := misfit(parameter, value)) is not None:
            wrong.append((name, problem))
        elif value is None and parameter.required:
            why = f"; its last value no longer fits: {unfit}" if unfit else ""
            wrong.append((name, f"a value is required{why}"))
        else:
            values[name] = value or ""
    if not wrong:
        return values
    sources = (asked, *fallbacks, *(() if last is None else (last.values,)))
    return Misfits(tuple(_without_secrets(wrong, declared, sources)))


def _without_secrets(
    wrong: list[tuple[str, str]],
    declared: tuple[Parameter, ...],
    given: tuple[Mapping[str, str], ...],
) -> list[tuple[str, str]]:
    """Mask the given secrets in the descriptions of wrong fields.

    A description may repeat a value that is the same as, or contains, another parameter's sensitive
    value. The values of undeclared parameters may be secrets too. The values of bool parameters are
    not.
    """
    plain = {p.name for p in declared if not p.sensitive or p.type is Kind.BOOL}
    secrets = tuple(
        value for source in given for name, value in source.items() if name not in plain and value
    )
    if not secrets:
        return wrong
    mask = Mask(secrets, longest=max(len(detail) for _, detail in wrong))
    return [(name, mask.whole(detail)) for name, detail in wrong]


def reset(
    declared: tuple[Parameter, ...], asked: Mapping[str, str], last: LastBuild
) -> tuple[str, ...]:
    """Return the names of the parameters whose previous value is no longer valid.

    Parameters that are not mutable, or to which the call gives a value, are not among them.
    """
    return tuple(
        parameter.name
        for parameter in declared
        if parameter.mutable
        and parameter.name not in asked
        and (carried := last.value(parameter)) is not None
        and misfit(parameter, carried) is not None
    )


def masked(declared: tuple[Parameter, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with the values of sensitive parameters replaced by the mask."""
    hidden = {parameter.name for parameter in declared if parameter.sensitive}
    return {name: MASK if name in hidden else value for name, value in values.items()}
