"""The accounts of NATS: each client's account, and what accounts export to each other.

Permissions alone do not contain a client. nats-server checks the subjects on which a client publishes,
but not the reply subject that the client asks an answer to be sent to. So a client could make the
server publish a PubAck, a stored state or an empty "not found" on any subject of its account, for
example on `workspaced.state.*` or `$JS.API.STREAM.DELETE.*`, where it may not publish itself.
Chat services, frontends and agents are therefore in accounts of their own, without JetStream, and
import the few subjects that they need as services. The server's answers to such a client stay in the
client's account and do not pass through another import.

Provisioners are in the account of the streams because they pull jobs. If a pull request came through
another account and its client disconnects at the same moment, nats-server 2.15 hands the job to that
request, and it is redelivered only after 30 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bus import subjects
from bus.streams import EXEC, LOG, RESULT, STATE

CORE: Final = "APP"
"""Contains the streams, and the roles that work on them."""
CHATS: Final = "CHATS"
"""Contains the chat services and the gateway. nats-server forgets the reply routes between accounts
when it restarts, so the gateway's long-held rpcs have to be answered within one account."""
CHATS_WITHOUT_EXEC: Final = "CHATS_WITHOUT_EXEC"
"""Contains the chat services whose key may run no commands. In the gateway's own account, nobody could tell who
sends a request; of a request from here, the server names the key."""
AGENTS: Final = "AGENTS"
FRONTENDS: Final = "FRONTENDS"
FRONTENDS_RPC: Final = "read_log"
"""The only rpc of frontends. The server names the key, by which the gateway knows the chats."""

SYSTEM: Final = "SYS"
"""The system account of nats-server."""
KICK: Final = subjects.kick("*")
"""Closes a client's connection. Beside this, operators and workers may ask the servers for their versions."""

ROLE_ACCOUNTS: Final = {
    "operator": CORE,
    "worker": CORE,
    "chat-service": CHATS,
    "gateway": CHATS,
    "provisioner": CORE,
}
"""The account of each static role."""


@dataclass(frozen=True, slots=True)
class Export:
    """A subject that an account exports, and the accounts that import it."""

    kind: str
    """`service` (the importers send requests) or `stream` (they receive messages)."""
    subject: str
    importers: tuple[str, ...]
    options: str = ""
    """Further options of the export, in nats-server's configuration syntax."""
    share_client_info: bool = False
    """Whether the server names the requesting client in a header (`Nats-Request-Info`)."""


def _service(
    subject: str, *importers: str, options: str = "", share_client_info: bool = False
) -> Export:
    return Export("service", subject, importers, options, share_client_info)


def _stream(subject: str, *importers: str) -> Export:
    return Export("stream", subject, importers)


def _direct_gets(stream: str, *importers: str) -> tuple[Export, Export]:
    return (
        _service(subjects.direct_get(stream), *importers),
        _service(subjects.direct_get(stream, ">"), *importers),
    )


_MANY_ANSWERS: Final = "response: stream"
"""One request, and an answer from each gateway."""
_LATE_ANSWER: Final = 'response_threshold: "30m"'
"""A gateway may hold an rpc for 25 minutes; the default threshold is two minutes."""

EXPORTS: Final[dict[str, tuple[Export, ...]]] = {
    CORE: (
        _service(subjects.IN_TOOL, CHATS, CHATS_WITHOUT_EXEC),
        _service(subjects.IN_AGENT, AGENTS),
        _service(subjects.LOGS, AGENTS),
        _service(subjects.PRESENCES, AGENTS),
        _service(subjects.EXECS, AGENTS),
        *_direct_gets(STATE.name, CHATS, CHATS_WITHOUT_EXEC, FRONTENDS),
        *_direct_gets(RESULT.name, CHATS, CHATS_WITHOUT_EXEC),
        *_direct_gets(LOG.name, CHATS),
        *_direct_gets(EXEC.name, CHATS),
        _service(subjects.WORKER_STATUS, CHATS),
        _service(subjects.WORKER_DEAD, CHATS),
        _stream(subjects.ALL_RESULTS, CHATS, CHATS_WITHOUT_EXEC),
        _stream(subjects.ALL_UI, CHATS, CHATS_WITHOUT_EXEC, FRONTENDS),
        _stream(subjects.RESEND_AGENT, AGENTS),
    ),
    CHATS: (
        _service(
            subjects.ALL_RPCS,
            CORE,
            CHATS_WITHOUT_EXEC,
            options=_LATE_ANSWER,
            share_client_info=True,
        ),
        _service(subjects.rpc(FRONTENDS_RPC), FRONTENDS, share_client_info=True),
        _service(subjects.ALL_SERVICES, CORE, options=_MANY_ANSWERS),
        _stream(subjects.REVOCATIONS, CHATS_WITHOUT_EXEC),
    ),
    CHATS_WITHOUT_EXEC: (),
    AGENTS: (_service(subjects.AGENT_REQUESTS, CHATS),),
    FRONTENDS: (),
    SYSTEM: (
        _service(KICK, CORE, CHATS),
        _service(subjects.ALL_SERVERS, CORE, options=_MANY_ANSWERS),
        # Of the accounts of workers, provisioners and gateways, not of agents and frontends.
        *(_stream(subjects.connections(account), CHATS) for account in (CORE, CHATS)),
    ),
}
"""The accounts, and what each exports to others."""
