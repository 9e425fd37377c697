"""Hides sensitive parameter values before they are logged, exported or shown.

A value is shown only if it is known to be harmless. The value of an undeclared parameter, or for an
unknown template, is hidden too, because it may be a secret under a misspelled name. Sensitive
values in the texts of a fact are masked before the fact is folded, so the snapshot, the states, the
answers and the event log do not contain them either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, Final

from pydantic import BaseModel

from statemachine.calls import Known
from statemachine.chat import Chat
from statemachine.events import BuildRequested, Event, ToolRequested
from statemachine.lookups import named_template
from statemachine.mask import MASK, Mask
from statemachine.parameters import Kind, Parameter, as_text
from statemachine.workspace import Build

PLAIN: Final = frozenset(("template_id", "template", "name", "preset_id", "preset"))
"""The arguments of tools with parameters that never hold the value of a parameter."""
WITH_PARAMETERS: Final = frozenset(("create_workspace", "start_workspace"))
_TEXTS: Final = ("error", "error_code", "reason", "output")
"""The keys of facts and requests whose texts come from the workspace or from people."""


def has_text(event: Event) -> bool:
    """Return whether an event has a text that could contain a sensitive value."""
    data = event.data
    return any(isinstance(getattr(data, key), str) for key in _text_keys(type(data)))


@cache
def _text_keys(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(key for key in _TEXTS if key in model.model_fields)


def fact(event: Event, chat: Chat, known: Known) -> Event:
    """Return the event with sensitive values masked in its texts and its notice.

    `known` must contain the template versions of the chat's builds.
    """
    if not has_text(event):
        return event
    values = _sensitive_values(chat, known)
    if not values:
        return event
    given = {key: getattr(event.data, key, None) for key in _TEXTS}
    texts = {key: text for key, text in given.items() if isinstance(text, str)}
    # A text whose beginning was cut off may begin with the end of a secret that is longer than the
    # text.
    longest = math.inf if event.beginnings_cut else _longest([*texts.values(), event.notice or ""])
    mask = _mask(tuple(values), longest)
    shown = {key: mask.whole(text) for key, text in texts.items()}
    for key in event.beginnings_cut & shown.keys():  # it may begin with the end of a secret
        shown[key] = mask.torn(shown[key])
    notice = None if event.notice is None else mask.whole(event.notice)
    data = event.data.model_copy(update=shown)
    return event.model_copy(update={"data": data, "notice": notice})


@lru_cache(maxsize=4)
def _mask(values: tuple[str, ...], longest: float) -> Mask:
    """Return a mask, from the cache if possible.

    To make one for values of a hundred kilobytes takes seconds, and each fact of the chat needs it.
    """
    return Mask(values, longest=longest)


def _longest(texts: Iterable[str]) -> int:
    """Return a power of two that no text's length exceeds; so few lengths occur in the cache."""
    return 1 << max(map(len, texts), default=0).bit_length()


def builds_with_values(chat: Chat) -> list[Build]:
    """Return the known builds with parameters of the chat's current and previous workspaces."""
    return [build for build in chat.builds() if build.parameters]


def _sensitive_values(chat: Chat, known: Known) -> list[str]:
    found: list[str] = []
    for build in builds_with_values(chat):
        version_id = build.template.version_id if build.template else build.template_version_id
        version = known.catalog.versions.get(version_id or "")
        declared = version.manifest.parameter if version is not None else ()
        found += secrets(declared, build.parameters)
    return found


def secrets(declared: tuple[Parameter, ...], values: Mapping[str, Any]) -> list[str]:
    """Return the values that must be masked in other texts, as text.

    These are the values of sensitive and of undeclared parameters, but not of declared bool
    parameters, because `true` and `false` are not secret.
    """
    sensitive = {p.name for p in declared if p.sensitive and p.type is not Kind.BOOL}
    plain = {p.name for p in declared} - sensitive
    return [_text(value) for name, value in values.items() if name not in plain]


def _text(value: object) -> str:
    """Return a value as the text that a job carries; a value that no job can carry as JSON."""
    try:
        return as_text(value)
    except ValueError:
        return json.dumps(value, ensure_ascii=False, default=str)


def event(event: Event, chat: Chat, known: Known) -> Event:
    """Return the event without sensitive values, as the event log may contain it."""
    data = event.data
    if isinstance(data, ToolRequested) and data.args:
        args = arguments(data.tool, data.args, chat, known)
        return event.model_copy(update={"data": data.model_copy(update={"args": args})})
    if isinstance(data, BuildRequested) and data.parameters:
        version = known.catalog.versions.get(data.template.version_id) if data.template else None
        declared = version.manifest.parameter if version is not None else ()
        values = _hidden(declared, data.parameters)
        return event.model_copy(update={"data": data.model_copy(update={"parameters": values})})
    return event


def arguments(tool: str, args: dict[str, Any], chat: Chat, known: Known) -> dict[str, Any]:
    """Return a call's arguments without sensitive values, as they may be shown.

    For a tool with parameters, unknown arguments are hidden too: parameters may have been passed
    under a wrong name.
    """
    shown = dict(args)
    if tool in WITH_PARAMETERS:
        for name, value in args.items():
            if name not in PLAIN or isinstance(value, dict | list):
                shown[name] = MASK
    values = args.get("parameters")
    if isinstance(values, dict):
        shown["parameters"] = _hidden(_declared(tool, args, chat, known), values)
    elif values is not None:
        shown["parameters"] = MASK
    elif "parameters" in args:
        shown["parameters"] = None
    return shown


def _hidden(declared: tuple[Parameter, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """Hide all values except those of declared parameters that are sensitive in no version.

    A value that contains a sensitive value is hidden as a whole, because replay can take a hidden
    value from the snapshot, but not a partly masked one.
    """
    sensitive = {parameter.name for parameter in declared if parameter.sensitive}
    plain = {parameter.name for parameter in declared} - sensitive
    texts = [text for name in plain & values.keys() for text in _texts_in(values[name])]
    mask = _mask(tuple(secrets(declared, values)), _longest(texts))
    return {
        name: value if name in plain and not _repeats(mask, value) else MASK
        for name, value in values.items()
    }


def _repeats(mask: Mask, value: object) -> bool:
    """Return whether a text, or a text in a list, contains a secret."""
    return any(mask.whole(text) != text for text in _texts_in(value))


def _texts_in(value: object) -> list[str]:
    """Return the text itself, or the texts in a list at any depth."""
    if isinstance(value, list):
        return [text for item in value for text in _texts_in(item)]
    return [value] if isinstance(value, str) else []


def _declared(tool: str, args: dict[str, Any], chat: Chat, known: Known) -> tuple[Parameter, ...]:
    """Return the declared parameters of every template version that the call may use.

    For start_workspace these are the active version and the version of the last build.
    """
    if tool == "create_workspace":
        wanted = named_template(args, chat.organization_id or "")
        template = known.catalog.templates.get(wanted or "")
        return template.active.manifest.parameter if template else ()
    if tool != "start_workspace":
        return ()
    found: tuple[Parameter, ...] = ()
    template = known.catalog.templates.get(chat.current.template_id or "") if chat.current else None
    if template is not None:
        found = template.active.manifest.parameter
    last = chat.build.template_version_id if chat.build else None
    if last is not None and last in known.catalog.versions:
        found += known.catalog.versions[last].manifest.parameter
    return found
