"""One program on the bus: connecting, publishing, asking, and waiting for what comes.

Nothing here comes from the product: it is nats-py and contract.md.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from tests import schemas
from tests.wire import shapes

PATIENCE = 15.0
"""Seconds after which a test gives up; none waits that long when all is well."""
CONTENT_TYPE = "application/cloudevents+json"
FULL_INBOX = ("operator", "worker")

Event = dict[str, Any]
T = TypeVar("T")
P = TypeVar("P", bound="Party")


def new_id() -> str:
    return str(uuid4())


def trace() -> tuple[str, str]:
    """A new trace id, and the traceparent that carries it."""
    trace_id = uuid4().hex
    return trace_id, f"00-{trace_id}-{uuid4().hex[:16]}-01"


def event(type_name: str, source: str, chat: str, data: Mapping[str, Any], **more: Any) -> Event:
    """An event as any other program would make it; `more` replaces attributes, None drops one."""
    made = {
        "specversion": "1.0",
        "id": new_id(),
        "source": source,
        "type": f"workspaced.{type_name}.v1",
        "subject": chat,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "data": dict(data),
        **more,
    }
    return {key: value for key, value in made.items() if value is not None}


class Heard(Generic[T]):
    """What came, in its order, and a wait for what is still to come."""

    def __init__(self) -> None:
        self.all: list[T] = []
        self._changed = asyncio.Condition()

    async def add(self, one: T) -> None:
        async with self._changed:
            self.all.append(one)
            self._changed.notify_all()

    async def first(self, wanted: Callable[[T], object], patience: float = PATIENCE) -> T:
        """The first that is wanted, also one that came already."""

        def found() -> list[T]:
            return [one for one in self.all if wanted(one)]

        try:
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(found)
        except TimeoutError:
            came = "\n".join(map(str, self.all))
            raise AssertionError(f"what was awaited never came; what came:\n{came}") from None
        return found()[0]

    async def count(self, number: int) -> list[T]:
        """Wait until so many have come."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(self.all) >= number)
        return self.all


class ServiceFault(Exception):
    """An rpc was answered by a NATS service error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


class Party:
    """One program on the bus."""

    def __init__(self) -> None:
        self.client = Client()
        self.js = self.client.jetstream(timeout=PATIENCE)
        self.errors: Heard[Exception] = Heard()

    async def publish(
        self, subject: str, body: Event | bytes, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Publish into a stream; say whether NATS took it for a duplicate."""
        fields = {"Content-Type": CONTENT_TYPE}
        if isinstance(body, dict):
            fields["Nats-Msg-Id"] = f"{body.get('source')}:{body.get('id')}"
            body = json.dumps(body).encode()
        ack = await self.js.publish(subject, body, headers={**fields, **(headers or {})})
        return bool(ack.duplicate)

    async def ask(self, rpc: str, body: Event | bytes) -> bytes:
        """Ask an rpc. Raises ServiceFault."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = await self.client.request(f"workspaced.rpc.{rpc}", raw, timeout=PATIENCE)
        if reply.headers and (code := reply.headers.get("Nats-Service-Error-Code")):
            raise ServiceFault(int(code), reply.headers["Nats-Service-Error"])
        if schemas.exists(described := f"rpcs/{rpc}.reply.json"):
            schemas.check(described, json.loads(reply.data))
        return reply.data

    async def rpc(self, name: str, /, **body: Any) -> Any:
        return json.loads(await self.ask(name, body))

    async def last(self, stream: str, subject: str) -> tuple[Event, dict[str, str]] | None:
        """Direct-get the last message of a subject."""
        try:
            found = await self.js.get_last_msg(stream, subject, direct=True)
        except nats.js.errors.NotFoundError:
            return None
        assert found.data is not None
        return json.loads(found.data), dict(found.headers or {})

    async def last_state(self, chat: str) -> Event | None:
        """The snapshot: data of the last state_changed."""
        found = await self.last("WORKSPACED_STATE", f"workspaced.state.{chat}")
        if found is None:
            return None
        envelope, headers = found
        shapes.envelope(envelope, "state_changed", chat, headers)
        shapes.state_changed(envelope["data"], chat)
        return dict(envelope["data"])

    async def settled(self) -> None:
        """Wait until the server has worked all that was sent: nats-py's PING overtakes its queue."""
        await self.client.flush()
        await self.client.flush()


async def connect(party: Party, url: str | list[str], **options: Any) -> None:
    """Connect with `options` of nats-py, for once and for all. Raises what nats-py raises."""

    async def heard(error: Exception) -> None:
        await party.errors.add(error)

    settings: dict[str, Any] = {
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": 5,
        "error_cb": heard,
    }
    await party.client.connect(url, **(settings | options))
    if not party.client.is_connected:
        raise nats.errors.AuthorizationError  # nats-py takes an early end for a yes


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    `wait_for` of Python 3.11, so nats-py too, swallows a cancellation that comes with its result.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)
    with suppress(asyncio.CancelledError):
        task.result()


@asynccontextmanager
async def connected(party: P, url: str, **options: Any) -> AsyncIterator[P]:
    """Connect a party; closed at the end, also when it was refused."""
    try:
        await connect(party, url, **options)
        yield party
    finally:
        await party.client.close()


def as_role(credentials: Path, role: str) -> dict[str, Any]:
    """Options with which a role of the data directory connects."""
    prefix = "_INBOX" if role in FULL_INBOX else f"_INBOX_{role}"
    return {"nkeys_seed": str(credentials / f"{role}.nk"), "inbox_prefix": prefix}


def as_holder(credential: Event) -> dict[str, Any]:
    """Options with which the holder of an issued credential connects."""
    assert {"seed", "inbox_prefix", "expires_at"} <= credential.keys()
    assert credential.keys() <= {"seed", "jwt", "inbox_prefix", "expires_at"}
    assert shapes.is_time(credential["expires_at"])
    options = {"nkeys_seed_str": credential["seed"], "inbox_prefix": credential["inbox_prefix"]}
    if "jwt" in credential:
        options["user_jwt_cb"] = credential["jwt"].encode
    return options
