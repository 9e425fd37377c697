"""What the rules may ask for: what must be known before calls are judged against chats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from statemachine.arguments import BadArguments, ReadArguments, arguments
from statemachine.calls import Call, Until
from statemachine.chat import Chat
from statemachine.events import BuildStarted, BuildSucceeded, Event, ToolRequested

LISTING: Final = "list_templates"
NAMING: Final = "create_workspace"


class Lookups(NamedTuple):
    """What to look up, by ids."""

    organizations: frozenset[str]
    """Of these, all templates."""
    templates: frozenset[str]
    versions: frozenset[str]
    owners: frozenset[str]
    """Of these, the names in use."""


def looks_up(call: Call) -> bool:
    """Say whether a waiting call may ask for more than its chat when the chat has moved.

    One that waits for what becomes of a build is answered by that alone; but its parameters can be shown
    only to who knows which of them are sensitive.
    """
    return call.wait is None or call.wait.until is Until.OVER or "parameters" in call.args


def lookups(
    calls: Iterable[ToolRequested | Call], chats: Iterable[Chat], facts: Iterable[Event]
) -> Lookups:
    """Return what the rules may ask for when they judge `calls` against `chats`.

    `facts`: what is folded into the chats before that, and may speak of more.
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
    """Return the template that the call names, in canonical form."""
    args = arguments(ReadArguments, {"template_id": call.args.get("template_id")})
    return None if isinstance(args, BadArguments) or args.problem() else args.id
