"""What runs, what waits, and what is wrong: the rpc `status`, and `workspaced status` without a gateway or a worker.

Each part is read for itself, so that the others are known when a server is away. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final, TypeVar

from bus import Bus, BusError, ConsumerState, Denied, NoResponder, Unavailable, subjects
from bus.streams import (
    CONSUMERS,
    DEAD,
    IN,
    JOB,
    STREAMS,
    WORKER_IN,
    Stream,
    pool_consumer,
)
from handlers.inspection.dead_letters import DeadLetters
from handlers.inspection.messages import (
    ConsumerStatus,
    DeadStatus,
    GatewayStatus,
    PoolStatus,
    ProblemStatus,
    ServerStatus,
    StatusReply,
    StreamStatus,
    WaitingStatus,
    WorkerStatus,
)
from statemachine.codec import timestamp
from statemachine.store import Store, StoreUnavailableError

ANSWERS_WITHIN: Final = 0.3
"""Seconds in which workers, gateways and servers answer who they are."""
LISTENED_WITHIN: Final = 0.5
"""Seconds in which the server says if nobody listens; a provisioner ignores the message."""
MOST_CALLS: Final = 100_000
"""Waiting calls are counted up to this number."""
_NEARLY_FULL: Final = 0.9
_BEHIND: Final = 10_000
"""Events that wait for workers, from which on they count as behind."""

Found = TypeVar("Found")


@dataclass(slots=True)
class Inspection:
    """Finds out the status once, for who asks."""

    store: Store | None
    bus: Bus | None
    database_error: str = "no database is named"
    """Why there is no `store`."""
    nats_error: str = ""
    """Why there is no `bus`."""
    reads_streams: bool = True
    """Whether the bus permits to read streams and consumers. The gateway's does not."""
    _problems: list[ProblemStatus] = field(default_factory=list)

    async def run(self) -> StatusReply:
        """Return the status."""
        database, servers = await asyncio.gather(self._database(), self._nats_servers())
        names = await self._pool_names()
        workers, gateways, pools, streams, waiting, dead = await asyncio.gather(
            self._workers(),
            self._gateways(),
            asyncio.gather(*map(self._pool, names)),
            self._streams(),
            self._waiting_calls(),
            self._dead_letters(),
        )
        status: StatusReply = {
            "at": timestamp(datetime.now(UTC)),
            "version": version("workspaced"),
            "servers": [*servers, database],
            "workers": workers,
            "gateways": gateways,
            "pools": pools,
            "streams": streams,
            "waiting_calls": waiting,
            "dead_letters": dead,
            "problems": self._problems,
        }
        if servers[0]["reachable"]:
            self._judge(status)
        return status

    # -- the parts ---------------------------------------------------------------------------------

    async def _database(self) -> ServerStatus:
        server, error = None, self.database_error
        if self.store is not None:
            try:
                server = await self.store.statistics.server()
                await self.store.check_writable()
            except StoreUnavailableError as problem:
                error = str(problem)
            else:
                error = ""
        if error:
            self._add(
                f"the database takes no changes: {error}",
                "PostgreSQL",
                "start it or free it; until then requests are stored in NATS, and nothing is carried out",
            )
        return {
            "kind": "postgresql",
            "name": None,
            "reachable": server is not None,
            "version": None if server is None else server.version,
            "started_at": None if server is None else timestamp(server.started_at),
        }

    async def _nats_servers(self) -> list[ServerStatus]:
        away: ServerStatus = {
            "kind": "nats",
            "name": None,
            "reachable": False,
            "version": None,
            "started_at": None,
        }
        if self.bus is None or not self.bus.connected:
            self._add(
                f"NATS does not answer: {self.nats_error or 'the connection is lost'}",
                "NATS",
                "start it, or correct WORKSPACED_NATS_URL; until then nothing is accepted, built or told",
            )
            return [away]
        found = [
            _nats_server(reply) for reply in await self._ask(subjects.ALL_SERVERS, ANSWERS_WITHIN)
        ]
        return sorted(found, key=lambda one: one["name"] or "") or [{**away, "reachable": True}]

    async def _gateways(self) -> list[GatewayStatus]:
        subject = subjects.service_statistics(subjects.GATEWAY_SERVICE)
        found: list[GatewayStatus] = [
            {"id": one["id"], "version": one["version"], "started_at": _second(one["started"])}
            for one in await self._ask(subject, ANSWERS_WITHIN)
        ]
        return sorted(found, key=lambda one: one["started_at"])

    async def _pool_names(self) -> list[str]:
        async def read(store: Store) -> list[str]:
            return sorted(await store.statistics.pools())

        return await self._of_database(read, [])

    async def _workers(self) -> list[WorkerStatus]:
        replies = await self._ask(subjects.WORKER_PRESENCE, ANSWERS_WITHIN)
        return sorted(replies, key=lambda one: str(one["name"]))

    async def _pool(self, pool: str) -> PoolStatus:
        async def read(bus: Bus) -> PoolStatus:
            try:
                state = await bus.consumer_state(pool_consumer(pool))
            except Unavailable:  # no worker has created it yet
                state = ConsumerState(0, 0, 0)
            first = None
            if state.undelivered:
                first = await bus.get_next(JOB.name, subjects.job(pool), state.delivered)
            oldest = None if first is None else first.stored_at
            return {
                "pool": pool,
                "served": bool(state.pulls) or await is_served(bus, pool),
                "idle": state.pulls,
                "waiting": state.undelivered,
                "running": state.unacked,
                "oldest_at": None if oldest is None else timestamp(oldest),
            }

        unknown: PoolStatus = {
            "pool": pool,
            "served": None,
            "idle": None,
            "waiting": None,
            "running": None,
            "oldest_at": None,
        }
        return await self._of_streams(read, unknown)

    async def _streams(self) -> list[StreamStatus]:
        found = await asyncio.gather(*map(self._stream, STREAMS))
        return [stream for stream in found if stream is not None]

    async def _stream(self, stream: Stream) -> StreamStatus | None:
        info = await self._of_streams(lambda bus: bus.stream_info(stream.name), None)
        if info is None:
            return None
        consumers: list[ConsumerStatus] = []
        for consumer in CONSUMERS:
            if consumer.stream == stream.name:
                state = await self._consumer(consumer.stream, consumer.name)
                consumers += [state] if state is not None else []
        return {
            "name": stream.name,
            "messages": info.messages,
            "bytes": info.size,
            "max_bytes": info.max_size if info.max_size > 0 else None,
            "consumers": consumers,
        }

    async def _consumer(self, stream: str, name: str) -> ConsumerStatus | None:
        consumer = next(c for c in CONSUMERS if (c.stream, c.name) == (stream, name))
        state = await self._of_streams(lambda bus: bus.consumer_state(consumer), None)
        if state is None:
            return None
        return {"name": name, "undelivered": state.undelivered, "unacked": state.unacked}

    async def _waiting_calls(self) -> WaitingStatus | None:
        async def read(store: Store) -> WaitingStatus:
            found = await store.statistics.waiting_calls(MOST_CALLS)
            return {
                "count": found.count,
                "oldest_at": None if found.oldest_at is None else timestamp(found.oldest_at),
            }

        return await self._of_database(read, None)

    async def _dead_letters(self) -> DeadStatus | None:
        async def read(bus: Bus) -> DeadStatus:
            info = await bus.stream_info(DEAD.name)
            newest = (
                await DeadLetters(bus).page(None, limit=1) if info.messages else {"letters": []}
            )
            at = newest["letters"][0]["at"] if newest["letters"] else None
            return {"count": info.messages, "newest_at": at}

        return await self._of_streams(read, None)

    # -- asking ------------------------------------------------------------------------------------

    async def _of_database(
        self, read: Callable[[Store], Awaitable[Found]], otherwise: Found
    ) -> Found:
        if self.store is not None:
            try:
                return await read(self.store)
            except StoreUnavailableError:
                pass  # among the problems already
        return otherwise

    async def _of_streams(self, read: Callable[[Bus], Awaitable[Found]], otherwise: Found) -> Found:
        if self.bus is not None and self.bus.connected and self.reads_streams:
            try:
                return await read(self.bus)
            except Denied:
                raise  # the key is no operator's
            except (BusError, TimeoutError):
                pass  # it does not exist yet, or the server is away
        return otherwise

    async def _ask(self, subject: str, within: float) -> list[Any]:
        """Return the JSON of everybody who answers in time."""

        async def read(bus: Bus) -> list[Any]:
            replies = await bus.request_many(subject, b"", timeout=within)
            return [json.loads(reply.data) for reply in replies]

        return await self._of_streams(read, [])

    # -- what is wrong -----------------------------------------------------------------------------

    def _add(self, what: str, where: str, do: str) -> None:
        self._problems.append({"what": what, "where": where, "do": do})

    def _judge(self, status: StatusReply) -> None:
        """Add the problems that the parts show."""
        if not status["workers"]:
            self._add(
                "no worker runs: requests and facts are stored, and nothing is carried out",
                "workers",
                "start one with `workspaced worker`, or `workspaced up`",
            )
        if not status["gateways"] and self.reads_streams:
            self._add(
                "no gateway runs: rpcs and HTTP are not answered, and issued keys can't connect",
                "gateways",
                "start one with `workspaced gateway`, or `workspaced up`",
            )
        versions = {one["version"] for one in (*status["workers"], *status["gateways"])}
        if len(versions) > 1:
            self._add(
                f"processes of different versions run: {', '.join(sorted(versions))}",
                "workers and gateways",
                "finish the upgrade: replace those of the older version",
            )
        most = min((worker["limits"]["jobs"] for worker in status["workers"]), default=None)
        for pool in status["pools"]:
            self._judge_pool(pool, most)
        self._judge_streams(status["streams"])
        self._judge_calls(status)
        if (dead := status["dead_letters"]) is not None and dead["count"]:
            self._add(
                f"{_counted(dead['count'], 'message')} could not be accepted",
                "dead letters",
                "see `workspaced dead list`; after the cause is mended, replay or drop them",
            )

    def _judge_pool(self, pool: PoolStatus, most: int | None) -> None:
        where, running, waiting = f"pool {pool['pool']}", pool["running"] or 0, pool["waiting"] or 0
        if pool["served"] is False and running:
            self._add(
                f"no provisioner serves it, and {_counted(running, 'build')} that one had begun "
                f"{'is' if running == 1 else 'are'} not going on",
                where,
                "start a provisioner: it takes over the builds of one that died",
            )
        elif pool["served"] is False:
            self._add(
                f"no provisioner serves it: {_wait(waiting) if waiting else 'the next build will wait'}",
                where,
                f"start one with `workspaced provisioner --pool {pool['pool']}`",
            )
        if most is not None and waiting >= most:
            self._add(
                f"its queue is full: {_wait(waiting)}, and calls that need another are refused",
                where,
                "start more provisioners, or raise WORKSPACED_JOB_QUEUE",
            )

    def _judge_streams(self, streams: Sequence[StreamStatus]) -> None:
        for stream in streams:
            if stream["name"] != IN.name:
                continue  # the others drop their oldest messages
            most = stream["max_bytes"]
            if most is not None and stream["bytes"] >= _NEARLY_FULL * most:
                self._add(
                    f"it is nearly full ({stream['bytes']} of {most} bytes): events are refused soon",
                    f"stream {stream['name']}",
                    "see why workers do not finish events, or give NATS more room",
                )
            for consumer in stream["consumers"]:
                if consumer["name"] == WORKER_IN.name and consumer["undelivered"] >= _BEHIND:
                    self._add(
                        f"{consumer['undelivered']} events wait for workers",
                        f"stream {stream['name']}",
                        "start more workers, or see their logs",
                    )

    def _judge_calls(self, status: StatusReply) -> None:
        most = min((worker["limits"]["calls"] for worker in status["workers"]), default=None)
        waiting = status["waiting_calls"]
        if most is not None and waiting is not None and waiting["count"] >= min(most, MOST_CALLS):
            self._add(
                f"{waiting['count']} calls wait: further calls that would wait are refused",
                "waiting calls",
                "see `workspaced calls list` for what they wait for",
            )


async def is_served(bus: Bus, pool: str) -> bool:
    """Return whether a provisioner listens to the canceled builds of a pool."""
    try:
        await bus.request(subjects.cancel(pool), b"{}", timeout=LISTENED_WITHIN)
    except NoResponder:
        return False
    except TimeoutError:
        pass
    return True


def _nats_server(reply: Any) -> ServerStatus:
    server, statistics = reply.get("server", {}), reply.get("statsz", {})
    started = statistics.get("start")
    return {
        "kind": "nats",
        "name": server.get("name"),
        "reachable": True,
        "version": server.get("ver"),
        "started_at": _second(started) if started else None,
    }


def _second(text: str) -> str:
    """Return a time of NATS or nats-py as workspaced writes times."""
    return timestamp(datetime.fromisoformat(text).astimezone(UTC))


def _wait(builds: int) -> str:
    return "1 build waits" if builds == 1 else f"{builds} builds wait"


def _counted(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
