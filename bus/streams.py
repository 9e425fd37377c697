"""Every stream and durable consumer, as data: what is kept, for how long, and who takes from it.

Limits are in seconds and bytes. The sum of `max_bytes` must fit the server's store, which refuses a
stream that it could not hold: so only those are bounded that could grow without end. `Tuning.disk`
makes them smaller for a small disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from bus import subjects

_MINUTE: Final = 60.0
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB


@dataclass(frozen=True, slots=True)
class Republish:
    """Where the server sends a copy of each message that a stream stored."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Stream:
    """What one stream takes in, keeps and lets go."""

    name: str
    subjects: tuple[str, ...]
    work_queue: bool = False
    in_memory: bool = False
    max_age: float = 0.0
    """0: for ever."""
    max_bytes: int = -1
    max_msg_size: int = -1
    """Headers included."""
    max_per_subject: int = -1
    discard_new: bool = False
    """At `max_bytes` refuse the new message, instead of forgetting the oldest."""
    duplicate_window: float = 2 * _MINUTE
    direct_get: bool = False
    atomic_batches: bool = False
    schedules: bool = False
    """Whoever may publish here may forge any subject of this stream: for trusted publishers."""
    message_ttl: bool = False
    marker_ttl: float = 0.0
    """How long the mark stays that a message with a time to live has gone; 0: no marks."""
    persist_async: bool = False
    """Acknowledge before the write: fast, and a crash of the server may cost the tail."""
    republish: Republish | None = None
    replicas: int = 1
    """Servers of a cluster that hold it; `persist_async` is for one only, and gives way."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable consumer with explicit acks and no delivery limit."""

    stream: str
    name: str
    filter: str = ""
    """Only this subject; empty: all of the stream."""
    ack_wait: float = 5.0
    """How long a delivery may stay unacked before it comes again."""
    max_ack_pending: int = 10_000
    """Over all who pull: room for ten workers with two full batches each."""
    headers_only: bool = False


IN: Final = Stream(
    "WORKSPACED_IN",
    (subjects.IN_TOOL, subjects.IN_PROVISIONER, subjects.IN_AGENT),
    work_queue=True,
    max_bytes=1024 * _MIB,
    max_msg_size=900 * _KIB,
    discard_new=True,
)
"""All that can move a workspace. Senders are not trusted: no header has power here."""

JOB: Final = Stream(
    "WORKSPACED_JOB",
    (subjects.JOBS,),
    work_queue=True,
    duplicate_window=24 * _HOUR,
    atomic_batches=True,
)
"""Builds for provisioners; the message id is the build id."""

STATE: Final = Stream(
    "WORKSPACED_STATE",
    (subjects.STATES,),
    max_per_subject=1,
    direct_get=True,
    atomic_batches=True,
    republish=Republish(subjects.STATES, subjects.UI_STATE_COPY),
)
"""The last state of each chat."""

LOG: Final = Stream(
    "WORKSPACED_LOG",
    (subjects.LOGS,),
    max_age=7 * _DAY,
    max_bytes=1024 * _MIB,
    max_msg_size=256 * _KIB,
    max_per_subject=20_000,
    direct_get=True,
    persist_async=True,
    republish=Republish(subjects.LOGS, subjects.UI_LOG_COPY),
)
"""Output of builds and scripts; the one stream that may lose its tail.

A build that goes on and on forgets its own first messages, not those of other builds.
"""

RESULT: Final = Stream(
    "WORKSPACED_RESULT",
    (subjects.RESULTS,),
    max_age=48 * _HOUR,
    max_per_subject=1,
    direct_get=True,
    atomic_batches=True,
)
"""The answer to each call, kept twice as long as promised."""

DEAD: Final = Stream(
    "WORKSPACED_DEAD",
    (subjects.DEADS,),
    max_age=30 * _DAY,
    max_bytes=256 * _MIB,
    direct_get=True,
)
"""What could not be accepted. No size limit of its own: it takes what IN took, with headers added."""

TIMER: Final = Stream(
    "WORKSPACED_TIMER",
    (subjects.TIMERS_ARMED, subjects.TIMERS_FIRED),
    max_age=35 * _DAY,
    max_per_subject=1,
    direct_get=True,
    atomic_batches=True,
    schedules=True,
)
"""Deadlines. A timer that fires again replaces its earlier firing: only the last one matters."""

PRESENCE: Final = Stream(
    "WORKSPACED_PRESENCE",
    (subjects.PRESENCES,),
    in_memory=True,
    max_bytes=64 * _MIB,
    max_msg_size=4 * _KIB,
    max_per_subject=1,
    direct_get=True,
    message_ttl=True,
    marker_ttl=_HOUR,
)
"""One short-lived message per agent; its mark tells the workers that the agent went silent."""

STREAMS: Final = (IN, JOB, STATE, LOG, RESULT, DEAD, TIMER, PRESENCE)
"""In the order in which they are made."""

BOUNDED: Final = sum(s.max_bytes for s in STREAMS if s.max_bytes > 0 and not s.in_memory)
"""Bytes of disk that all streams with a limit may take together."""
LEAST: Final = 64 * _MIB
"""Bytes below which these streams are of no use: a burst of events would not fit."""

WORKER_IN: Final = Consumer(IN.name, "worker")
"""What all workers take events from."""

WORKER_TIMER: Final = Consumer(TIMER.name, "worker", filter=subjects.TIMERS_FIRED)
"""Fired timers; unfiltered it would deliver the armed ones too."""

WORKER_PRESENCE: Final = Consumer(PRESENCE.name, "worker", headers_only=True)
"""Marks of agents that went silent. Renewals come too (the server can't tell them apart): cheaply."""

CONSUMERS: Final = (WORKER_IN, WORKER_TIMER, WORKER_PRESENCE)
"""Those of the workers; the pools' are made as templates name them."""


def pool_consumer(pool: str) -> Consumer:
    """Return the durable consumer that the provisioners of `pool` share."""
    return Consumer(JOB.name, f"pool-{pool}", filter=subjects.job(pool), ack_wait=30.0)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What an operator may choose of streams and of the workers' consumers. Seconds."""

    replicas: int = 1
    duplicate_window: float = JOB.duplicate_window
    """How long a job is known by its message id."""
    ack_wait: float = WORKER_IN.ack_wait
    disk: int = BOUNDED
    """Bytes that all streams with a limit may take together; each gets its share of it.

    A smaller stream makes no weaker promise: `WORKSPACED_IN` refuses an event earlier, it drops none.
    """

    def streams(self) -> tuple[Stream, ...]:
        """Return every stream as chosen, in the order in which they are made."""
        return tuple(self._stream(stream) for stream in STREAMS)

    def consumers(self) -> tuple[Consumer, ...]:
        """Return the workers' consumers as chosen."""
        return tuple(replace(consumer, ack_wait=self.ack_wait) for consumer in CONSUMERS)

    def _stream(self, stream: Stream) -> Stream:
        window = self.duplicate_window if stream is JOB else stream.duplicate_window
        size = stream.max_bytes
        if size > 0 and not stream.in_memory:
            size = size * min(self.disk, BOUNDED) // BOUNDED
        return replace(stream, replicas=self.replicas, duplicate_window=window, max_bytes=size)
