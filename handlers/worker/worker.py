"""The worker's loop: take what is there, apply it in one transaction, publish, ack."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from bus import Bus, BusError, Delivery, Message, Responder, Unavailable
from bus.streams import CONSUMERS, STREAMS
from handlers.sending.backoff import Backoff
from handlers.worker import effects
from handlers.worker.batch import apply
from handlers.worker.chat import FARTHEST
from handlers.worker.inbox import Dead, Item, Missed, dead, read
from handlers.worker.relay import Relay
from handlers.worker.waking import looked_for
from statemachine.store import Outgoing, Store, StoreUnavailableError, TransientError
from statemachine.strictness import Reason
from statemachine.wakes import Purpose, wake
from statemachine.workspace import Limits

log = logging.getLogger(__name__)

BATCH: Final = 256
"""Deliveries a batch at most; under light load it is one."""
POOLS_SUBJECT: Final = "workspaced.worker.pools"
"""Asked when a template was pushed: the pools it names get their consumers before the answer."""


@dataclass(slots=True)
class Worker:
    """Applies events to chats, with any number of others doing the same."""

    store: Store
    bus: Bus
    limits: Limits
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    dead_letters: int = 0
    """How many this worker has buried."""

    async def run(self) -> None:
        """Work until cancelled."""
        relay = Relay(self.bus)
        self.bus.on_reconnect(relay.forget)
        await self._prepare(relay)
        await self.bus.respond(POOLS_SUBJECT, "workers", self._pools(relay))
        async with self.bus.pull(*CONSUMERS, most=BATCH) as pull:
            self.ready.set()
            log.info("worker is ready")
            backoff = Backoff()
            while True:
                try:
                    deliveries = await pull.next(BATCH)
                except Unavailable as bad:  # the servers are away, or others: begin anew
                    log.warning("nothing can be pulled, trying again: %s", bad)
                    await backoff.wait()
                    await self._prepare_again(relay)
                    continue
                backoff.reset()
                await self._work(deliveries, relay)

    async def _prepare_again(self, relay: Relay) -> None:
        relay.forget()
        try:
            await self._prepare(relay)
        except (Unavailable, StoreUnavailableError) as bad:
            log.warning("not ready to pull yet: %s", bad)

    async def _prepare(self, relay: Relay) -> None:
        """Make streams, consumers and timers as the database has them."""
        for stream in STREAMS:
            await self.bus.ensure_stream(stream)
        for consumer in CONSUMERS:
            await self.bus.ensure_consumer(consumer)
        await relay.ensure_pools(await self.store.pools())
        await self._arm(relay)

    async def _arm(self, relay: Relay) -> None:
        """Set the timers of all that chats wait for, from the database."""
        after: str | None = None
        while chats := await self.store.waking(after=after):
            now, after = datetime.now(UTC), chats[-1].chat_id
            open_ = [(c.chat_id, p, wake(c, p, self.limits)) for c in chats for p in Purpose]
            await relay.publish(
                [
                    effects.timer(c, p, w.generation, min(w.at, now + FARTHEST))
                    for c, p, w in open_
                    if w
                ]
            )

    def _pools(self, relay: Relay) -> Responder:
        async def respond(message: Message) -> bytes:
            del message
            await relay.ensure_pools(await self.store.pools())
            return b"{}"

        return respond

    async def _work(self, deliveries: Sequence[Delivery], relay: Relay) -> None:
        """Bring deliveries to their end: applied or buried, published, acked."""
        now = datetime.now(UTC)
        items = [(delivery, read(delivery, now)) for delivery in deliveries]
        try:
            items = [(delivery, await self._looked_for(item, relay)) for delivery, item in items]
            rows, buried = await self._apply(items)
            await relay.publish(rows)
            await relay.bury(buried)
            # Dropped before the ack: what an ack has let go nobody would look for in the outbox.
            if ids := [row.id for row in rows if row.id]:
                await self.store.published(ids)
        except Unavailable as bad:
            log.warning("the bus is away, what is not published comes again: %s", bad)
            await self._prepare_again(relay)
        except BusError as bad:
            log.error(  # noqa: TRY400 — the server's words are all there is to say
                "the bus refuses what must be published, it comes again: %s; see who may publish "
                "where, and how large",
                bad,
            )
        except StoreUnavailableError as bad:
            log.warning("the database is away, the batch comes again: %s", bad)
        else:
            self.dead_letters += len(buried)
            for delivery, _ in items:
                await delivery.ack()

    async def _looked_for(self, item: Item, relay: Relay) -> Item:
        return await looked_for(item, self.store, relay) if isinstance(item, Missed) else item

    async def _apply(
        self, items: Sequence[tuple[Delivery, Item]]
    ) -> tuple[list[Outgoing], list[Dead]]:
        """Apply in one transaction; what makes it fail is found by halving, and buried alone."""
        buried = [item for _, item in items if isinstance(item, Dead)]
        backoff = Backoff()
        while True:
            try:
                rows = await apply(
                    [item for _, item in items], self.store, self.limits, os.urandom(16)
                )
            except TransientError as bad:  # a lost race, or too much for one transaction
                if len(items) > 1:
                    return await self._halved(items, bad)
                log.warning("a transaction did not come through, trying again: %s", bad)
                await backoff.wait()
            except StoreUnavailableError as bad:
                log.warning("the database is away, trying again: %s", bad)
                await backoff.wait()
            except Exception as bad:  # noqa: BLE001 — whatever it is, its neighbours go on
                if len(items) > 1:
                    return await self._halved(items, bad)
                return await self._fails_alone(*items[0], bad)
            else:
                return rows, buried

    async def _halved(
        self, items: Sequence[tuple[Delivery, Item]], bad: Exception
    ) -> tuple[list[Outgoing], list[Dead]]:
        log.warning("a batch of %d failed, halving it: %s", len(items), bad)
        half = len(items) // 2
        first, second = await self._apply(items[:half]), await self._apply(items[half:])
        return first[0] + second[0], first[1] + second[1]

    async def _fails_alone(
        self, delivery: Delivery, item: Item, bad: Exception
    ) -> tuple[list[Outgoing], list[Dead]]:
        """Bury what no transaction takes, and answer its call if it is one."""
        log.error("an event fails alone and is buried: %s", delivery.subject, exc_info=bad)
        if isinstance(item, Dead):
            return [], [item]
        # Its words stay in our log: they may hold values that are nobody else's to read.
        letter = dead(delivery, Reason.INTERNAL, f"internal error: {type(bad).__name__}", item)
        return await self._apply([(delivery, letter)])
