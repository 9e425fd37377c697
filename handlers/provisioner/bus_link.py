"""The connection of the local provisioner, as the kit sees it: over the bus of this process."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from workspaced import errors

from bus import (
    NAK,
    Backoff,
    Bus,
    BusError,
    Delivery,
    NoConsumer,
    Refused,
    ServiceError,
    is_final,
    subjects,
)
from bus.streams import pool_consumer
from handlers.errors import CannotServe
from handlers.publishing import OutgoingEvent, deliver

_ANSWER_WITHIN: Final = 5.0

_log = logging.getLogger(__name__)


class BusLink:
    """A `workspaced.provisioning.link.Link` over a bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        return self._bus.connected

    async def store(self, subject: str, body: bytes, identity: str) -> None:
        """Publish an event until its stream has stored it. Raises errors.Refused."""
        try:
            await deliver(self._bus, OutgoingEvent(subject, identity, body))
        except BusError as error:
            raise errors.Refused(str(error)) from error

    async def send_log(self, subject: str, body: bytes, identity: str) -> None:
        """Publish lines of a log once, without the acknowledgement for which `identity` would be needed."""
        del identity
        try:
            await self._bus.send(subject, body)
        except BusError as error:
            kind = errors.Refused if is_final(error) else errors.Unavailable
            raise kind(str(error)) from error

    async def hand_back(self, reply: str) -> None:
        """Hand back a job."""
        with suppress(BusError):
            await self._bus.send(reply, NAK)

    async def rpc_until_answered(self, name: str, body: Mapping[str, Any]) -> bytes:
        """Call an rpc until it is answered. Raises errors.Refused if a retry would get the same error again."""
        backoff = Backoff()
        while True:
            try:
                answer = await self._bus.request(
                    subjects.rpc(name), json.dumps(body).encode(), timeout=_ANSWER_WITHIN
                )
            except (BusError, TimeoutError) as error:
                if isinstance(error, BusError) and is_final(error):
                    raise errors.Refused(str(error)) from error
                level = logging.WARNING if isinstance(error, ServiceError) else logging.INFO
                _log.log(level, "no answer to %s yet, trying again: %s", name, error)
            else:
                return answer.data
            await backoff.wait()

    async def listen(
        self, subject: str, take: Callable[[bytes], None], renewed: Callable[[], None]
    ) -> NoReturn:
        """Call `take` with each message, until cancelled."""
        backoff = Backoff()
        while True:
            try:
                async with self._bus.subscribe(subject) as messages:
                    renewed()
                    backoff.reset()
                    while True:
                        message = await messages.next_or_reconnect()
                        if message is None:
                            renewed()
                        else:
                            take(message.data)
            except BusError as error:
                _log.info("can't subscribe to %s now: %s", subject, error)
            await backoff.wait()

    async def jobs(self, pool: str, most: int) -> AsyncGenerator[Delivery, None]:
        """Yield the jobs of a pool, which has no consumer until a template names it.

        Raises CannotServe if this key may never take jobs.
        """
        consumer, backoff = pool_consumer(pool), Backoff()
        took_jobs, logged = False, ""
        while True:
            try:
                async with self._bus.pull(consumer, prefetch=most) as pull:
                    while True:
                        for delivery in await pull.next(most):
                            yield delivery
                        took_jobs, logged = True, ""
                        backoff.reset()
            except BusError as error:
                if isinstance(error, Refused) and not took_jobs:
                    raise CannotServe(
                        f"this key may not take jobs of pool {pool}: it is valid for "
                        "another pool or another role; see --pool, --name and `workspaced "
                        f"credentials list` ({error})"
                    ) from error
                message = f"jobs of pool {pool} can't be taken now: {error}"
                if isinstance(error, NoConsumer) and not took_jobs:
                    message = f"no template of pool {pool} has been pushed yet; waiting"
                if message != logged:
                    _log.info("%s", message)
                    logged = message
            await backoff.wait()
