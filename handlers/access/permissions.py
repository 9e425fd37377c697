"""Who may say and hear what on the bus: the contract's table as data, and as nats-server reads it.

What is not named is refused. Agents and frontends are not here: the gateway grants theirs. It also grants
what is here to keys that were issued for a role, a provisioner's narrowed to its pool and name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from bus import subjects
from bus.streams import JOB, LOG, RESULT, STATE, pool_consumer

_CHAT_SERVICE_RPCS: Final = (
    "create_workspace",
    "start_workspace",
    "stop_workspace",
    "list_templates",
    "read_template",
    "cancel",
    "get_chat",
    "list_chats",
    "read_log",
    "read_events",
    "frontend_credential",
)
_PROVISIONER_RPCS: Final = ("template_archive", "agent_credential")
_EVERYTHING: Final = (">",)
_STATE, _RESULT, _LOG, _JOB = STATE.name, RESULT.name, LOG.name, JOB.name


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one role may publish and subscribe; with `answers`, also reply once to what it gets."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    refused: tuple[str, ...] = ()
    """Subjects of `publish` that it may not publish after all."""
    answers: bool = False


def _direct_gets(*streams: str) -> tuple[str, ...]:
    """By subject in the request's own subject, and by sequence in its body."""
    return tuple(
        subjects.direct_get(stream, subject) for stream in streams for subject in ("", ">")
    )


def inbox_prefix(role: str) -> str:
    """Return where answers to this role come, which no other role may listen to."""
    return "_INBOX" if PERMISSIONS[role].subscribe == _EVERYTHING else f"_INBOX_{role}"


PERMISSIONS: Final[dict[str, Permissions]] = {
    "operator": Permissions(
        publish=_EVERYTHING,
        refused=(subjects.ALL_TIMERS,),
        subscribe=_EVERYTHING,
    ),
    "chat-service": Permissions(
        publish=(
            subjects.IN_TOOL,
            *map(subjects.rpc, _CHAT_SERVICE_RPCS),
            *_direct_gets(_STATE, _RESULT),
        ),
        subscribe=(subjects.ALL_RESULTS, subjects.ALL_UI, "_INBOX_chat-service.>"),
    ),
    "provisioner": Permissions(
        publish=(
            subjects.IN_PROVISIONER,
            subjects.LOGS,
            subjects.next_messages(_JOB, "*"),
            subjects.acks(_JOB, "*"),
            *map(subjects.rpc, _PROVISIONER_RPCS),
        ),
        subscribe=(subjects.RESEND_PROVISIONER, "_INBOX_provisioner.>"),
    ),
    "worker": Permissions(
        publish=_EVERYTHING,
        refused=(subjects.ALL_IN,),
        subscribe=_EVERYTHING,
    ),
    "gateway": Permissions(
        publish=(
            subjects.IN_TOOL,
            *_direct_gets(_STATE, _RESULT, _LOG),
            # Answers to rpcs that were asked before NATS was lost and found again: the server
            # forgets with the connection what it let us answer. Chat services ask in our own
            # account; the others' requests come from theirs, under names that the server makes
            # up. Nothing of ours reaches an inbox of workers, operators or provisioners.
            "_INBOX_chat-service.>",
            "_R_.>",
            # Who was let in is cut off when the key is revoked. No new power: it says who comes in.
            subjects.kick("*"),
        ),
        subscribe=(
            subjects.ALL_RPCS,
            subjects.ALL_RESULTS,
            subjects.ALL_SERVICES,  # every micro service answers for its presence and its figures there
            subjects.AUTH_CALLOUT,  # the server asks who a client is
            "_INBOX_gateway.>",
        ),
        answers=True,
    ),
}
"""The static roles; each holds one NKey of the data directory's `credentials`."""

ROLES: Final = tuple(PERMISSIONS)
"""The names of the static roles."""


def provisioner_of(pool: str, name: str) -> Permissions:
    """Return what a provisioner may do that is known by name: for its pool, and as itself only."""
    return Permissions(
        publish=(
            subjects.inbound("provisioner", "*", name),
            subjects.LOGS,
            subjects.next_messages(_JOB, pool_consumer(pool).name),
            subjects.acks(_JOB, pool_consumer(pool).name),
            *map(subjects.rpc, _PROVISIONER_RPCS),
        ),
        subscribe=(subjects.RESEND_PROVISIONER,),
    )


def as_nats_conf(permissions: Permissions) -> str:
    """Return the `permissions` block of a user, as the server's configuration spells it."""
    publish = f"allow: {json.dumps(permissions.publish)}"
    if permissions.refused:
        publish += f", deny: {json.dumps(permissions.refused)}"
    block = f"publish: {{ {publish} }}, subscribe: {{ allow: {json.dumps(permissions.subscribe)} }}"
    if permissions.answers:
        # An rpc may be held for 25 minutes before its one answer.
        block += ', allow_responses: { max: 1, expires: "30m" }'
    return f"{{ {block} }}"
