"""The replies of `status` and of the rpcs about dead letters, as types.

docs/schemas is made from these types: run `make schemas` after a change.
"""

from __future__ import annotations

from typing import Literal, NotRequired

# pydantic reads TypedDicts of `typing` only from Python 3.12 on.
from typing_extensions import TypedDict

from statemachine.messages import IgnoredKeys, Timestamp


class ServerStatus(TypedDict):
    """A server that workspaced uses."""

    kind: Literal["nats", "postgresql"]
    reachable: bool
    """Whether who answers reaches it."""
    name: str | None
    """For a NATS server: its name."""
    version: str | None
    """Null if it is not known."""
    started_at: Timestamp | None


class CallLimits(TypedDict):
    """How many calls and jobs a worker lets wait; further ones are refused at once."""

    calls_per_chat: int
    calls: int
    jobs: int
    """Of one pool."""


class WorkerStatus(TypedDict):
    """A worker that runs."""

    name: str
    """Its machine and process id."""
    version: str
    started_at: Timestamp
    limits: CallLimits


class GatewayStatus(TypedDict):
    """A gateway that runs."""

    id: str
    """Its id as a NATS micro service."""
    version: str
    started_at: Timestamp


class PoolStatus(TypedDict):
    """A pool, and the builds that its provisioners have to make."""

    pool: str
    served: bool | None
    """Whether a provisioner serves it. Null, like the numbers: not known, because no worker runs that could find out."""
    idle: int | None
    """Requests of provisioners that wait for a job."""
    waiting: int | None
    """Jobs that no provisioner has taken."""
    running: int | None
    """Jobs that a provisioner has taken and not ended; it may have died since."""
    oldest_at: Timestamp | None
    """When the job was requested that waits longest."""


class ConsumerStatus(TypedDict):
    """How far the workers are with a stream."""

    name: str
    undelivered: int
    """Messages that no worker has received."""
    unacked: int
    """Messages that a worker has received and not finished."""


class StreamStatus(TypedDict):
    """A stream of NATS."""

    name: str
    messages: int
    bytes: int
    max_bytes: int | None
    """Null if it has no limit of its own."""
    consumers: list[ConsumerStatus]
    """Those of the workers; those of pools are in `pools`."""


class WaitingStatus(TypedDict):
    """The calls that wait for their answers."""

    count: int
    """At most 100,000; then there may be more."""
    oldest_at: Timestamp | None


class DeadStatus(TypedDict):
    """The messages that could not be accepted."""

    count: int
    newest_at: Timestamp | None


class ProblemStatus(TypedDict):
    """Something that is wrong, in words for people."""

    what: str
    where: str
    do: str
    """What to do about it."""


class StatusReply(IgnoredKeys):
    """The reply of `status`. What could not be read is empty or null, and among the problems."""

    at: Timestamp
    version: str
    """The version of who answers."""
    servers: list[ServerStatus]
    workers: list[WorkerStatus]
    gateways: list[GatewayStatus]
    pools: list[PoolStatus]
    streams: list[StreamStatus]
    waiting_calls: WaitingStatus | None
    dead_letters: DeadStatus | None
    problems: list[ProblemStatus]


class DeadLetter(TypedDict):
    """A message that could not be accepted."""

    sequence: int
    """Identifies it."""
    at: Timestamp | None
    """When it became a dead letter."""
    subject: str
    """The subject that it was published on."""
    reason: str
    """Why, as one of the reasons of the contract."""
    detail: str
    """Why, in words."""
    chat_id: str | None
    """The chat in its subject; null if it has none."""
    sender: str | None
    """The last token of its subject: who sent it."""
    size: int
    """Bytes of its body."""


class DeadLettersPage(IgnoredKeys):
    """The reply of `list_dead`."""

    letters: list[DeadLetter]
    next: NotRequired[int]
    """Absent on the last page; otherwise the `before` of the next request."""


class ReadDeadLetter(DeadLetter, IgnoredKeys):
    """The reply of `read_dead`."""

    body: str
    """The message, as UTF-8 with replacement, at most 128 KiB of it."""
    headers: dict[str, str]
    """The headers of its sender."""
    advice: str
    """Text for people: what to do about it."""
    refusal: str | None
    """Why it must not be published again; null if it may be."""
