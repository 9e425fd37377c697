"""The permissions of the static roles: the subjects that each may publish and subscribe to.

Everything that is not listed is denied. `issued_keys` grants the same permissions to keys that were
issued for a role (a provisioner's are limited to its pool and name), and defines the permissions of
agents and frontends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bus import subjects
from bus.streams import EXEC, JOB, LOG, RESULT, STATE, pool_consumer
from statemachine.exec_tools import EXEC_TOOLS

_CHAT_SERVICE_RPCS: Final = (
    "create_workspace",
    "start_workspace",
    "stop_workspace",
    "list_templates",
    "read_template",
    "cancel",
    "keep",
    "cancel_build",
    "get_chat",
    "list_chats",
    "read_log",
    "read_events",
    "frontend_credential",
    "issue_token",
    "list_tokens",
    "revoke_token",
    "check_token",
)
EXEC_RPCS: Final = tuple(map(subjects.rpc, EXEC_TOOLS))
"""The rpcs that run commands and use files in workspaces."""
_PROVISIONER_RPCS: Final = ("template_archive", "agent_credential")
SHARED_INBOX_PREFIX: Final = "_INBOX"
"""The default prefix of NATS clients."""
_EVERYTHING: Final = (">",)
_STATE, _RESULT, _LOG, _JOB, _EXEC = (s.name for s in (STATE, RESULT, LOG, JOB, EXEC))


@dataclass(frozen=True, slots=True)
class Permissions:
    """The subjects on which a client may publish, and those to which it may subscribe."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    deny_publish: tuple[str, ...] = ()
    """Exceptions from `publish`."""
    deny_subscribe: tuple[str, ...] = ()
    """Exceptions from `subscribe`: the server delivers the rest of a wildcard."""
    allow_responses: bool = False
    """The client may also answer each request that it receives, once."""


def _direct_gets(*streams: str) -> tuple[str, ...]:
    """Return the request subjects for both forms of a direct get: by subject, and by sequence."""
    return tuple(
        subjects.direct_get(stream, subject) for stream in streams for subject in ("", ">")
    )


def role_inbox_prefix(role: str) -> str:
    """Return the inbox prefix of a static role, to which no other role may subscribe.

    Roles that may subscribe to everything use NATS's default prefix.
    """
    return SHARED_INBOX_PREFIX if PERMISSIONS[role].subscribe == _EVERYTHING else f"_INBOX_{role}"


PERMISSIONS: Final[dict[str, Permissions]] = {
    "operator": Permissions(
        publish=_EVERYTHING,
        deny_publish=(subjects.ALL_TIMERS,),
        subscribe=_EVERYTHING,
    ),
    "chat-service": Permissions(
        publish=(
            subjects.IN_TOOL,
            *map(subjects.rpc, _CHAT_SERVICE_RPCS),
            *EXEC_RPCS,
            *_direct_gets(_STATE, _RESULT),
        ),
        subscribe=(
            subjects.ALL_RESULTS,
            subjects.ALL_UI,
            subjects.REVOCATIONS,  # so that it ends what it admitted by a bearer token
            "_INBOX_chat-service.>",
        ),
    ),
    "provisioner": Permissions(
        publish=(
            subjects.IN_PROVISIONER,
            subjects.LOGS,
            subjects.next_messages(_JOB, "*"),
            subjects.acks(_JOB, "*"),
            *map(subjects.rpc, _PROVISIONER_RPCS),
        ),
        subscribe=(subjects.RESEND_PROVISIONER, subjects.CANCELS, "_INBOX_provisioner.>"),
    ),
    "worker": Permissions(
        publish=_EVERYTHING,
        deny_publish=(subjects.ALL_IN,),
        subscribe=_EVERYTHING,
    ),
    "gateway": Permissions(
        publish=(
            subjects.IN_TOOL,
            *_direct_gets(_STATE, _RESULT, _LOG, _EXEC),
            subjects.AGENT_REQUESTS,
            # What operators ask: workers read it, because they may read every stream.
            subjects.WORKER_STATUS,
            subjects.WORKER_DEAD,
            # Answers to rpcs that arrived before the connection to NATS was lost: the server
            # forgets its permission to respond together with the connection. Chat services are
            # in the same account; requests of other accounts come from reply subjects that the
            # server makes up. Workers, operators and provisioners have no inbox in this account.
            "_INBOX_chat-service.>",
            "_R_.>",
            # Closes the connections of revoked keys. This adds no power: the gateway already
            # decides who may connect.
            subjects.kick("*"),
            subjects.REVOCATIONS,
        ),
        subscribe=(
            subjects.ALL_RPCS,
            subjects.ALL_RESULTS,
            subjects.ALL_UI,
            subjects.REVOCATIONS,
            subjects.ALL_SERVICES,  # discovery and statistics of micro services
            subjects.CONNECTIONS,  # for operators who look at what runs
            subjects.AUTH_CALLOUT,
            "_INBOX_gateway.>",
        ),
        allow_responses=True,
    ),
}
"""The static roles. Each has an NKey in the `credentials` directory of the data directory."""

ROLES: Final = tuple(PERMISSIONS)
"""The names of the static roles."""


def provisioner_permissions(pool: str, name: str) -> Permissions:
    """Return the permissions of a provisioner: jobs of its pool, and reports under its own name."""
    return Permissions(
        publish=(
            subjects.inbound("provisioner", "*", name),
            subjects.LOGS,
            subjects.next_messages(_JOB, pool_consumer(pool).name),
            subjects.acks(_JOB, pool_consumer(pool).name),
            *map(subjects.rpc, _PROVISIONER_RPCS),
        ),
        subscribe=(subjects.RESEND_PROVISIONER, subjects.cancel(pool)),
    )
