"""Hiding sensitive parameter values before anything is logged, exported or shown."""

from __future__ import annotations

from typing import Any

from statemachine.calls import Known
from statemachine.events import BuildRequested, Event, ToolRequested
from statemachine.parameters import Parameter, masked
from statemachine.workspace import Workspace


def event(event: Event, chat: Workspace, known: Known) -> Event:
    """Return the event as the log may hold it."""
    data = event.data
    if isinstance(data, ToolRequested):
        args = arguments(data.tool, data.args, chat, known)
        if args == data.args:
            return event
        return event.model_copy(update={"data": data.model_copy(update={"args": args})})
    if isinstance(data, BuildRequested) and data.template is not None:
        version = known.catalog.versions.get(data.template.version_id)
        if version is not None:
            values = masked(version.manifest.parameter, data.parameters)
            return event.model_copy(update={"data": data.model_copy(update={"parameters": values})})
    return event


def arguments(tool: str, args: dict[str, Any], chat: Workspace, known: Known) -> dict[str, Any]:
    """Return a call's arguments with sensitive values hidden."""
    values = args.get("parameters")
    if not isinstance(values, dict):
        return args
    return {**args, "parameters": masked(_declared(tool, args, chat, known), values)}


def _declared(
    tool: str, args: dict[str, Any], chat: Workspace, known: Known
) -> tuple[Parameter, ...]:
    """Return the parameters that the values are for, of every version that may be meant."""
    if tool == "create_workspace":
        template = known.catalog.templates.get(str(args.get("template_id")).strip().lower())
        return template.active.manifest.parameter if template else ()
    found: tuple[Parameter, ...] = ()
    template = known.catalog.templates.get(chat.ref.template_id or "") if chat.ref else None
    if template is not None:
        found = template.active.manifest.parameter
    last = chat.build.template_version_id if chat.build else None
    if last is not None and last in known.catalog.versions:
        found += known.catalog.versions[last].manifest.parameter
    return found
