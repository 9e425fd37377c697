"""Hiding sensitive parameter values before anything is logged, exported or shown.

What is shown must be known to be harmless. A value for a template or a parameter that nobody has
declared may be a secret under a misspelled name; so it is hidden too. A fact's texts lose what they
repeat of a sensitive value before the fact is folded, so the snapshot, the states, the answers and the
event log that follow from it do not have it either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from statemachine.calls import Known
from statemachine.chat import Chat
from statemachine.events import BuildRequested, Event, ToolRequested
from statemachine.mask import MASK, Mask
from statemachine.parameters import Kind, Parameter, as_text
from statemachine.workspace import Build

PLAIN: Final = frozenset(("template_id", "name", "preset_id"))
"""The arguments of the tools with parameters that hold no value of one."""
WITH_PARAMETERS: Final = frozenset(("create_workspace", "start_workspace"))
_TEXTS: Final = ("error", "error_code", "reason", "output")
"""The keys of facts and requests whose values are text from the workspace or from people."""


def has_text(event: Event) -> bool:
    """Say whether an event has a text that could repeat a sensitive value."""
    return any(isinstance(getattr(event.data, key, None), str) for key in _TEXTS)


def fact(event: Event, chat: Chat, known: Known) -> Event:
    """Return the event with its texts masked; `known` has the versions of the chat's builds."""
    if not has_text(event):
        return event
    values = _sensitive_values(chat, known)
    if not values:
        return event
    given = {key: getattr(event.data, key, None) for key in _TEXTS}
    texts = {key: text for key, text in given.items() if isinstance(text, str)}
    # What was cut may hold the rest of a part that was longer than it.
    longest = math.inf if event.beginnings_cut else _longest([*texts.values(), event.notice or ""])
    mask = _mask(tuple(values), longest)
    shown = {key: mask.whole(text) for key, text in texts.items()}
    for key in event.beginnings_cut & shown.keys():  # it may begin with the rest of a secret
        shown[key] = mask.torn(shown[key])
    notice = None if event.notice is None else mask.whole(event.notice)
    data = event.data.model_copy(update=shown)
    return event.model_copy(update={"data": data, "notice": notice})


@lru_cache(maxsize=4)
def _mask(values: tuple[str, ...], longest: float) -> Mask:
    """Make a mask. Values of a hundred kilobytes take seconds, and each fact of their chat needs it again."""
    return Mask(values, longest=longest)


def _longest(texts: Iterable[str]) -> int:
    """Return a length that none of the texts exceeds: a power of two, so that masks can be used again."""
    return 1 << max(map(len, texts), default=0).bit_length()


def builds_with_values(chat: Chat) -> list[Build]:
    """Return the builds known of the chat's workspaces, present and former, that have parameters."""
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
    """Return the texts that no other text may repeat: sensitive values, and those of unknown names.

    `true` and `false` are secrets of nobody, whatever parameter has them.
    """
    sensitive = {p.name for p in declared if p.sensitive and p.type is not Kind.BOOL}
    plain = {p.name for p in declared} - sensitive
    return [_text(value) for name, value in values.items() if name not in plain]


def _text(value: object) -> str:
    """Return a value as a job has it; of one that no job takes, something that shows its texts."""
    try:
        return as_text(value)
    except ValueError:
        return json.dumps(value, ensure_ascii=False, default=str)


def event(event: Event, chat: Chat, known: Known) -> Event:
    """Return the event as the log may hold it."""
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
    """Return a call's arguments as they may be shown.

    Of a tool with parameters, what it does not take is hidden too: they may stand under a wrong name.
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
    """Hide all values but those of parameters that are declared, and sensitive in no version.

    A value that repeats a sensitive one is hidden as a whole: replay takes it from the snapshot.
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
    """Say whether a text, or a text in a list, has a secret in it."""
    return any(mask.whole(text) != text for text in _texts_in(value))


def _texts_in(value: object) -> list[str]:
    """Return a text, or the texts in a list, at any depth."""
    if isinstance(value, list):
        return [text for item in value for text in _texts_in(item)]
    return [value] if isinstance(value, str) else []


def _declared(tool: str, args: dict[str, Any], chat: Chat, known: Known) -> tuple[Parameter, ...]:
    """Return the parameters that the values are for, of every version that may be meant."""
    if tool == "create_workspace":
        template = known.catalog.templates.get(str(args.get("template_id")).strip().lower())
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
