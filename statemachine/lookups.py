"""Determines the rows that a worker must load before it evaluates calls with the tool rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from statemachine.arguments import BadArguments, CreateArguments, ReadArguments, arguments
from statemachine.calls import Call, Until
from statemachine.chat import Chat
from statemachine.events import BuildStarted, BuildSucceeded, Event, ToolRequested

LISTING: Final = "list_templates"
NAMING: Final = "create_workspace"
_TEMPLATE_KEYS: Final = ("template_id", "template")


class Lookups(NamedTuple):
    """Ids of the rows to load."""

    organizations: frozenset[str] = frozenset()
    """Organizations whose templates are all loaded."""
    templates: frozenset[str] = frozenset()
    versions: frozenset[str] = frozenset()
    owners: frozenset[str] = frozenset()
    """Owners. The names of all their workspaces are loaded."""


def looks_up(call: Call) -> bool:
    """Return whether the rules may need more rows than the chat's snapshot to answer this call.

    A call that waits for the outcome of a build needs only the snapshot. But if it has parameters,
    the template must be loaded to know which of them are sensitive.
    """
    return call.wait is None or call.wait.until is Until.OVER or "parameters" in call.args


def lookups(
    calls: Iterable[ToolRequested | Call], chats: Iterable[Chat], facts: Iterable[Event]
) -> Lookups:
    """Return the ids of the rows that the rules may need to evaluate `calls` on `chats`.

    `facts` are the events that will be folded into the chats first. They may name further templates
    and versions.
    """
    calls, chats, facts = tuple(calls), tuple(chats), tuple(facts)
    templates = {_template_of(call) for call in calls}
    templates |= {f.data.template_id for f in facts if isinstance(f.data, BuildStarted)}
    versions = {
        f.data.template_version_id
        for f in facts
        if isinstance(f.data, BuildStarted | BuildSucceeded)
    }
    for chat in chats:
        records = chat.previous if chat.current is None else (chat.current, *chat.previous)
        templates |= {record.template_id for record in records}
        for build in chat.builds():
            versions.add(build.template_version_id)
            versions.add(build.template.version_id if build.template else None)
    return Lookups(
        organizations=frozenset(call.organization_id for call in calls if call.tool == LISTING),
        templates=frozenset(template for template in templates if template),
        versions=frozenset(version for version in versions if version),
        owners=frozenset(call.owner_id for call in calls if call.tool == NAMING),
    )


def _template_of(call: ToolRequested | Call) -> str | None:
    """Return the id of the template that the call names by id or by name, in canonical form."""
    if call.tool == NAMING:
        return named_template(call.args, call.organization_id)
    args = arguments(ReadArguments, {"template_id": call.args.get("template_id")})
    return None if isinstance(args, BadArguments) or args.problem() else args.id


def named_template(args: Mapping[str, Any], organization_id: str) -> str | None:
    """Return the id of the template that arguments of create_workspace name; None if they name none."""
    wanted = arguments(CreateArguments, {key: args.get(key) for key in _TEMPLATE_KEYS})
    if isinstance(wanted, BadArguments) or wanted.problem():
        return None
    return wanted.template_of(organization_id)
