"""Which of NATS's accounts each party is in, and what passes between them.

Permissions alone do not keep a client to its part. The server checks where a client publishes, but not
where it wants the answer: as itself it would publish a PubAck, a stored state or an empty "not found"
on any subject of the account, also on `workspaced.state.*` and on `$JS.API.STREAM.DELETE.*`, where
nobody may. So chat services, frontends and agents have accounts of their own, without JetStream: they
reach the few subjects they need as imported services. What the server answers such a client stays in
the client's own account, and goes through no import again.

Provisioners are beside the streams, because they pull: nats-server 2.15 gives a job to a pull that
came through another account and whose client left in the same instant, and nobody gets it for 30 s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bus import subjects
from bus.streams import LOG, RESULT, STATE

CORE: Final = "APP"
"""Has the streams, and who works on them."""
CHATS: Final = "CHATS"
"""Chat services, and the gateway: answers to rpcs that it holds must outlive a restart of the
server, which forgets what it let pass between accounts."""
AGENTS: Final = "AGENTS"
FRONTENDS: Final = "FRONTENDS"

SYSTEM: Final = "SYS"
"""The servers' own."""
KICK: Final = subjects.kick("*")
"""Closes a client's connection: the one service of the servers that others may be let to ask."""

HOMES: Final = {
    "operator": CORE,
    "worker": CORE,
    "chat-service": CHATS,
    "gateway": CHATS,
    "provisioner": CORE,
}
"""The account of each static role."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What one account offers and which others use: requests (a service) or copies (a stream)."""

    kind: str
    subject: str
    users: tuple[str, ...]
    options: str = ""
    tells: bool = False
    """The server says in a header of each request who asks (`Nats-Request-Info`)."""


def _service(subject: str, *users: str, options: str = "", tells: bool = False) -> Passage:
    return Passage("service", subject, users, options, tells)


def _stream(subject: str, *users: str) -> Passage:
    return Passage("stream", subject, users)


def _direct_gets(stream: str, *users: str) -> tuple[Passage, Passage]:
    return (
        _service(subjects.direct_get(stream), *users),
        _service(subjects.direct_get(stream, ">"), *users),
    )


_MANY_ANSWERS: Final = "response: stream"
"""One question, and an answer of every gateway."""
_LATE_ANSWER: Final = 'response_threshold: "30m"'
"""An rpc may be held for 25 minutes; the server's own patience is two."""

OFFERED: Final[dict[str, tuple[Passage, ...]]] = {
    CORE: (
        _service(subjects.IN_TOOL, CHATS),
        _service(subjects.IN_AGENT, AGENTS),
        _service(subjects.LOGS, AGENTS),
        _service(subjects.PRESENCES, AGENTS),
        *_direct_gets(STATE.name, CHATS, FRONTENDS),
        *_direct_gets(RESULT.name, CHATS),
        *_direct_gets(LOG.name, CHATS),
        _stream(subjects.ALL_RESULTS, CHATS),
        _stream(subjects.ALL_UI, CHATS, FRONTENDS),
        _stream(subjects.RESEND_AGENT, AGENTS),
    ),
    CHATS: (
        _service(subjects.ALL_RPCS, CORE, options=_LATE_ANSWER, tells=True),
        _service(subjects.ALL_SERVICES, CORE, options=_MANY_ANSWERS),
    ),
    AGENTS: (),
    FRONTENDS: (),
    SYSTEM: (_service(KICK, CORE, CHATS),),
}
"""Each account, and what it offers to others."""


def as_nats_conf(account: str, users: Sequence[str]) -> str:
    """Return an account as nats-server's configuration spells it; `users` are spelled already."""
    exports = [
        _block({passage.kind: passage.subject}, passage.options) for passage in OFFERED[account]
    ]
    imports = [
        f"{{ {passage.kind}: {_block({'account': owner, 'subject': passage.subject})}"
        f"{', share: true' if passage.tells else ''} }}"
        for owner, passages in OFFERED.items()
        for passage in passages
        if account in passage.users
    ]
    parts = ["jetstream: enabled"] if account == CORE else []
    for name, entries in (("users", users), ("exports", exports), ("imports", imports)):
        if entries:
            listed = "\n".join(f"      {entry}" for entry in entries)
            parts.append(f"{name}: [\n{listed}\n    ]")
    content = "\n    ".join(parts)
    return f"  {account} {{\n    {content}\n  }}"


def _block(pairs: dict[str, str], options: str = "") -> str:
    said = [f"{key}: {json.dumps(value)}" for key, value in pairs.items()]
    return "{ " + ", ".join([*said, options] if options else said) + " }"
