"""Hiding sensitive parameter values before anything is logged, exported or shown.

What is shown must be known to be harmless. A value for a template or a parameter that nobody has
declared may be a secret under a misspelled name; so it is hidden too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from statemachine.calls import Known
from statemachine.events import BuildRequested, Event, ToolRequested
from statemachine.parameters import MASK, Parameter
from statemachine.workspace import Workspace

PLAIN: Final = frozenset(("template_id", "name", "preset_id"))
"""The arguments of the tools with parameters that hold no value of one."""
WITH_PARAMETERS: Final = frozenset(("create_workspace", "start_workspace"))


def event(event: Event, chat: Workspace, known: Known) -> Event:
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


def arguments(tool: str, args: dict[str, Any], chat: Workspace, known: Known) -> dict[str, Any]:
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
    """Hide all values but those of parameters that are declared, and sensitive in no version."""
    sensitive = {parameter.name for parameter in declared if parameter.sensitive}
    plain = {parameter.name for parameter in declared} - sensitive
    return {name: value if name in plain else MASK for name, value in values.items()}


def _declared(
    tool: str, args: dict[str, Any], chat: Workspace, known: Known
) -> tuple[Parameter, ...]:
    """Return the parameters that the values are for, of every version that may be meant."""
    if tool == "create_workspace":
        template = known.catalog.templates.get(str(args.get("template_id")).strip().lower())
        return template.active.manifest.parameter if template else ()
    if tool != "start_workspace":
        return ()
    found: tuple[Parameter, ...] = ()
    template = known.catalog.templates.get(chat.ref.template_id or "") if chat.ref else None
    if template is not None:
        found = template.active.manifest.parameter
    last = chat.build.template_version_id if chat.build else None
    if last is not None and last in known.catalog.versions:
        found += known.catalog.versions[last].manifest.parameter
    return found
