"""Who may say and hear what on the bus: the contract's table as data, and as nats-server reads it.

What is not named is refused. Agents and frontends are not here: the gateway grants theirs. It also grants
what is here to keys that were issued for a role, a provisioner's narrowed to its pool and name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

_RPC: Final = "workspaced.rpc."
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
_RESEND: Final = "workspaced.resend.provisioner"


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
    forms = ("$JS.API.DIRECT.GET.{}", "$JS.API.DIRECT.GET.{}.>")
    return tuple(form.format(stream) for stream in streams for form in forms)


def inbox_prefix(role: str) -> str:
    """Return where answers to this role come, which no other role may listen to."""
    return "_INBOX" if PERMISSIONS[role].subscribe == _EVERYTHING else f"_INBOX_{role}"


PERMISSIONS: Final[dict[str, Permissions]] = {
    "operator": Permissions(
        publish=_EVERYTHING,
        refused=("workspaced.timer.>",),
        subscribe=_EVERYTHING,
    ),
    "chat-service": Permissions(
        publish=(
            "workspaced.in.tool.*.*",
            *(_RPC + name for name in _CHAT_SERVICE_RPCS),
            *_direct_gets("WORKSPACED_STATE", "WORKSPACED_RESULT"),
        ),
        subscribe=("workspaced.result.>", "workspaced.ui.>", "_INBOX_chat-service.>"),
    ),
    "provisioner": Permissions(
        publish=(
            "workspaced.in.provisioner.*.*",
            "workspaced.log.*.*",
            "$JS.API.CONSUMER.MSG.NEXT.WORKSPACED_JOB.*",
            "$JS.ACK.WORKSPACED_JOB.*.>",
            *(_RPC + name for name in _PROVISIONER_RPCS),
        ),
        subscribe=(_RESEND, "_INBOX_provisioner.>"),
    ),
    "worker": Permissions(
        publish=_EVERYTHING,
        refused=("workspaced.in.>",),
        subscribe=_EVERYTHING,
    ),
    "gateway": Permissions(
        publish=(
            "workspaced.in.tool.*.*",
            *_direct_gets("WORKSPACED_STATE", "WORKSPACED_RESULT", "WORKSPACED_LOG"),
            # Answers to rpcs that were asked before NATS was lost and found again: the server
            # forgets with the connection what it let us answer. Chat services ask in our own
            # account; the others' requests come from theirs, under names that the server makes
            # up. Nothing of ours reaches an inbox of workers, operators or provisioners.
            "_INBOX_chat-service.>",
            "_R_.>",
            # Who was let in is cut off when the key is revoked. No new power: it says who comes in.
            "$SYS.REQ.SERVER.*.KICK",
        ),
        subscribe=(
            "workspaced.rpc.>",
            "workspaced.result.>",
            "$SRV.>",  # every micro service answers for its presence and its figures there
            "$SYS.REQ.USER.AUTH",  # the server asks who a client is
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
            f"workspaced.in.provisioner.*.{name}",
            "workspaced.log.*.*",
            f"$JS.API.CONSUMER.MSG.NEXT.WORKSPACED_JOB.pool-{pool}",
            f"$JS.ACK.WORKSPACED_JOB.pool-{pool}.>",
            *(_RPC + name for name in _PROVISIONER_RPCS),
        ),
        subscribe=(_RESEND,),
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
