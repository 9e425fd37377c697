"""All streams and durable consumers of workspaced, as data.

Times are in seconds, sizes in bytes. The sum of `max_bytes` has to fit the server's store, because the
server refuses a stream for which it has no room. Therefore only those streams have a limit that could
grow without end; `Tuning.disk` scales the limits down for a small disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from nats.js.api import (
    ConsumerConfig,
    DiscardPolicy,
    PersistMode,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from bus import subjects

_MINUTE: Final = 60.0
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB


@dataclass(kw_only=True)
class Stream(StreamConfig):
    """A stream's configuration, with a value for each field that workspaced manages.

    `Bus.ensure_stream` sets exactly these fields; an operator may set all other fields of the base class.
    """

    name: str
    subjects: list[str]
    retention: RetentionPolicy = RetentionPolicy.LIMITS
    storage: StorageType = StorageType.FILE
    discard: DiscardPolicy = DiscardPolicy.OLD
    max_age: float = 0.0
    """0: no limit."""
    max_bytes: int = -1
    max_msg_size: int = -1
    """Headers included."""
    max_msgs_per_subject: int = -1
    duplicate_window: float = 2 * _MINUTE
    allow_direct: bool = False
    allow_atomic: bool = False
    """Permits `Bus.publish_together`; not with async persistence."""
    allow_msg_schedules: bool = False
    """Publishers can then forge every subject of this stream: only for streams of trusted publishers."""
    allow_msg_ttl: bool = False
    subject_delete_marker_ttl: float = 0.0
    """How long the delete marker of an expired message stays; 0: no markers."""
    republish: RePublish | None = None
    num_replicas: int = 1
    persist_mode: PersistMode | None = None
    """ASYNC acknowledges before the write: fast, but a crash of the server may lose the tail.

    Workers publish again from the database what a derived stream lost. Ignored with more than one replica.
    """

    @property
    def in_memory(self) -> bool:
        """Whether a restart of the server empties the stream."""
        return self.storage is StorageType.MEMORY


MANAGED: Final = tuple(Stream.__annotations__)
"""The fields that `Bus.ensure_stream` sets."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable pull consumer with explicit acks and unlimited redelivery.

    nats-py's ConsumerConfig does not name its stream and can't be a key, so this is not a subclass.
    """

    stream: str
    name: str
    filter: str = ""
    """Deliver this subject only; empty: all subjects of the stream."""
    ack_wait: float = 5.0
    """The server redelivers a message that was not acked for so long."""
    max_ack_pending: int = 10_000
    """For all pulling processes together: enough for nine workers with four full batches each."""
    headers_only: bool = False

    def config(self) -> ConsumerConfig:
        """Return the configuration for nats-py."""
        return ConsumerConfig(
            name=self.name,
            durable_name=self.name,
            filter_subject=self.filter or None,
            ack_wait=self.ack_wait,
            max_deliver=-1,
            max_ack_pending=self.max_ack_pending,
            headers_only=self.headers_only,
        )


IN: Final = Stream(
    name="WORKSPACED_IN",
    subjects=[subjects.IN_TOOL, subjects.IN_PROVISIONER, subjects.IN_AGENT],
    max_bytes=1024 * _MIB,
    max_msg_size=900 * _KIB,
    discard=DiscardPolicy.NEW,
)
"""Every event that can change a workspace. Publishers are untrusted: no option here acts on headers.

Workers delete what they have acknowledged. It is no work queue, which would delete each message separately when
it is acknowledged, with one write to the disk for each.
"""

JOB: Final = Stream(
    name="WORKSPACED_JOB",
    subjects=[subjects.JOBS],
    retention=RetentionPolicy.WORK_QUEUE,
    duplicate_window=24 * _HOUR,
    allow_direct=True,
    allow_atomic=True,
)
"""Jobs for provisioners; the message id is the build id.

Not asynchronous: after a crash workers look for lost states, answers and alarms, but not for lost jobs.
"""

STATE: Final = Stream(
    name="WORKSPACED_STATE",
    subjects=[subjects.STATES],
    max_msgs_per_subject=1,
    allow_direct=True,
    persist_mode=PersistMode.ASYNC,
    republish=RePublish(subjects.STATES, subjects.UI_STATE_COPY),
)
"""The latest state of each chat."""

LOG: Final = Stream(
    name="WORKSPACED_LOG",
    subjects=[subjects.LOGS],
    max_age=7 * _DAY,
    max_bytes=1024 * _MIB,
    max_msg_size=256 * _KIB,
    max_msgs_per_subject=20_000,
    allow_direct=True,
    persist_mode=PersistMode.ASYNC,
    republish=RePublish(subjects.LOGS, subjects.UI_LOG_COPY),
)
"""Output of builds and scripts. Nobody publishes its lost tail again.

A build with endless output loses its own oldest messages, not those of other builds.
"""

RESULT: Final = Stream(
    name="WORKSPACED_RESULT",
    subjects=[subjects.RESULTS],
    max_age=48 * _HOUR,
    max_msgs_per_subject=1,
    allow_direct=True,
    persist_mode=PersistMode.ASYNC,
)
"""The result of each tool call, kept twice as long as the contract promises."""

DEAD: Final = Stream(
    name="WORKSPACED_DEAD",
    subjects=[subjects.DEADS],
    max_age=30 * _DAY,
    max_bytes=256 * _MIB,
    allow_direct=True,
)
"""Dead letters. No `max_msg_size`: a letter is larger than the message of `IN`, by its headers."""

TIMER: Final = Stream(
    name="WORKSPACED_TIMER",
    subjects=[subjects.ALL_TIMERS],
    max_age=35 * _DAY,
    max_msgs_per_subject=1,
    allow_direct=True,
    allow_msg_schedules=True,
    persist_mode=PersistMode.ASYNC,
)
"""Alarms: a schedule for each time, and the latest alarm that rang, which replaces the one before.

None is missed by that: workers look at all chats whose alarms are due, whichever alarm rang.
"""

PRESENCE: Final = Stream(
    name="WORKSPACED_PRESENCE",
    subjects=[subjects.PRESENCES],
    storage=StorageType.MEMORY,
    max_bytes=64 * _MIB,
    max_msg_size=4 * _KIB,
    max_msgs_per_subject=1,
    allow_direct=True,
    allow_msg_ttl=True,
    subject_delete_marker_ttl=_HOUR,
)
"""The latest heartbeat of each agent, with a TTL; its delete marker tells workers that the agent is silent."""

EXEC: Final = Stream(
    name="WORKSPACED_EXEC",
    subjects=[subjects.EXECS],
    max_age=_DAY,
    max_bytes=1024 * _MIB,
    max_msg_size=256 * _KIB,
    max_msgs_per_subject=20_000,
    allow_direct=True,
    persist_mode=PersistMode.ASYNC,
    republish=RePublish(subjects.EXECS, subjects.UI_EXEC_COPY),
)
"""Start, output and end of the commands in workspaces. A lost tail is not published again, because the agent keeps
the output.

A command with endless output loses its own oldest messages, not those of other commands.
"""

STREAMS: Final = (IN, JOB, STATE, LOG, RESULT, DEAD, TIMER, PRESENCE, EXEC)
"""In the order of their creation."""

BOUNDED: Final = sum(s.max_bytes for s in STREAMS if s.max_bytes > 0 and not s.in_memory)
"""Bytes of disk that all streams with a limit may use together."""
LEAST: Final = 64 * _MIB
"""The smallest useful value of `Tuning.disk`: a burst of events has to fit."""

WORKER_IN: Final = Consumer(IN.name, "worker")
"""All workers pull events from this consumer."""

WORKER_ALARM: Final = Consumer(TIMER.name, "alarm", filter=subjects.ALARM_RANG)
"""Alarms that rang. Without the filter it would deliver schedules too."""

WORKER_TIMER: Final = Consumer(TIMER.name, "worker", filter=subjects.EARLIER_TIMERS)
"""Timers of workers of an earlier version, which may run beside others. Each makes workers look at due alarms."""

WORKER_PRESENCE: Final = Consumer(PRESENCE.name, "worker", headers_only=True)
"""Delete markers of silent agents. The server can't filter out heartbeats, so they come without data."""

CONSUMERS: Final = (WORKER_IN, WORKER_ALARM, WORKER_TIMER, WORKER_PRESENCE)
"""The consumers of the workers. Those of pools are created when a template names the pool."""


def pool_consumer(pool: str) -> Consumer:
    """Return the durable consumer that all provisioners of `pool` share."""
    return Consumer(JOB.name, f"pool-{pool}", filter=subjects.job(pool), ack_wait=30.0)


@dataclass(frozen=True, slots=True)
class Tuning:
    """An operator's settings of streams and of the workers' consumers. Times are in seconds."""

    replicas: int = 1
    duplicate_window: float = JOB.duplicate_window
    """How long the stream of jobs remembers the message id of a job."""
    ack_wait: float = WORKER_IN.ack_wait
    disk: int = BOUNDED
    """Bytes that all streams with a limit may use together; each gets a proportional share.

    A smaller limit weakens no guarantee: `WORKSPACED_IN` refuses an event earlier, but drops none.
    """

    def streams(self) -> tuple[Stream, ...]:
        """Return all streams with these settings, in the order of their creation."""
        return tuple(self._stream(stream) for stream in STREAMS)

    def consumers(self) -> tuple[Consumer, ...]:
        """Return the workers' consumers with these settings."""
        return tuple(replace(consumer, ack_wait=self.ack_wait) for consumer in CONSUMERS)

    def _stream(self, stream: Stream) -> Stream:
        window = self.duplicate_window if stream is JOB else stream.duplicate_window
        size = stream.max_bytes
        if size > 0 and not stream.in_memory:
            size = size * min(self.disk, BOUNDED) // BOUNDED
        return replace(stream, num_replicas=self.replicas, duplicate_window=window, max_bytes=size)
