"""Alarms: when one rings, workers look at the chats whose timers may be due.

A chat's alarm is a row of the database, and all alarms of a quarter of a second are one scheduled message of NATS
(`statemachine.timers.alarm_time`). Whichever message arrives, the worker takes the first chats whose alarms are due.
Their rows are marked as handled together with the changes that follow, and deleted when these are published. So if a
worker stops in between, the next one publishes what is missing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from bus import Delivery
from handlers.runtime import clock
from handlers.worker import publications
from handlers.worker.call_limits import retention
from handlers.worker.committer import LONGEST_DELAY, CommitResult, Read
from handlers.worker.deliveries import AlarmMessage
from handlers.worker.publications import Publication
from statemachine.step import AlarmRang
from statemachine.store import Alarm, DueAlarms, Store, TransientError, WorkRefusedError
from statemachine.timers import alarm_time

log = logging.getLogger(__name__)

PAGE: Final = 256
"""Maximum number of alarms in a batch. When there are more, the message is delivered again."""
PUBLISHING: Final = 2.0
"""Seconds for which handled alarms are left to the worker that publishes what follows. Less than `ack_wait`, after
which another worker gets its message."""


@dataclass(frozen=True, slots=True)
class ChatAlarm:
    """A chat's due alarms, in the place of a delivery: so a chat that fails does not stop the others.

    An ack has no effect: the alarms stay in the database until `Ringing.delete`.
    """

    rang: Delivery
    """The message that rang."""
    chat_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    redelivered: bool = False
    is_delete_marker: bool = False
    reply: str = ""

    @property
    def subject(self) -> str:
        """The subject of the message that rang."""
        return self.rang.subject

    @property
    def data(self) -> bytes:
        """The id of the chat, for a dead letter."""
        return json.dumps({"chat_id": self.chat_id}).encode()

    @property
    def stream(self) -> str:
        """Name of the stream of alarms."""
        return self.rang.stream

    @property
    def sequence(self) -> int:
        """The sequence of the message that rang."""
        return self.rang.sequence

    async def ack(self) -> bool:
        """Do nothing."""
        return False

    async def in_progress(self) -> None:
        """Do nothing."""

    async def nak(self) -> None:
        """Redeliver the message that rang."""
        await self.rang.nak()


@dataclass(frozen=True, slots=True)
class Ringing:
    """The alarms of one batch."""

    rang: Sequence[Delivery] = ()
    """The messages that rang."""
    due: DueAlarms | None = None
    early: Sequence[Publication] = ()
    """Alarms that rang before their time, to be set again: the clock of NATS runs ahead."""
    left_out: bool = False
    """Whether alarms may be left out, so that somebody has to look again: chats that are postponed, or alarms from which
    somebody is publishing what follows."""
    next: Sequence[Publication] = ()
    """The next alarm. It is set again, in case that NATS has lost it or rang it too early."""

    def items(self) -> list[Read]:
        """Return an input for each chat with due alarms."""
        if self.due is None:
            return []
        return [
            (
                ChatAlarm(self.rang[0], chat_id),
                AlarmRang(chat_id, tuple(a.at for a in alarms), chat_id in self.due.handled),
            )
            for chat_id, alarms in self.due.alarms.items()
        ]

    @property
    def has_more(self) -> bool:
        """Whether there may be more alarms that are due."""
        return self.due is not None and self.due.is_full

    async def delete(self, result: CommitResult, store: Store) -> None:
        """Delete the alarms of a batch that was published. Raises StoreUnavailableError."""
        if self.due is None or not self.due.alarms:
            return
        await store.delete_alarms(self._of(result.deliveries))
        if failed := self._of(result.failed):
            await store.delete_alarms(failed, unhandled=True)

    def _of(self, deliveries: Iterable[Delivery]) -> list[Alarm]:
        found = self.due.alarms if self.due is not None else {}
        chat_ids = [d.chat_id for d in deliveries if isinstance(d, ChatAlarm)]
        return [alarm for chat_id in chat_ids for alarm in found[chat_id]]


class Bell:
    """Reads the alarms that are due when one rings."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._postponed: dict[str, float] = {}
        """Chat id -> until when its alarms are left out, in seconds of `clock`."""

    async def ring(self, items: Iterable[Read]) -> Ringing:
        """Read the alarms that are due, if one of the items is an alarm. Raises StoreUnavailableError."""
        rang = [(delivery, item) for delivery, item in items if isinstance(item, AlarmMessage)]
        if not rang:
            return Ringing()
        now = clock()
        self._postponed = {chat: until for chat, until in self._postponed.items() if until > now}
        without = list(self._postponed)
        try:
            keep = retention(await self._store.settings())
            due = await self._store.due_alarms(
                PAGE, without=without, publishing=PUBLISHING, retention=keep
            )
            rest = None if keep is None else await self._store.first_rest(keep)
        except (TransientError, WorkRefusedError) as error:  # the events of the batch go on
            log.warning("alarms could not be read, trying again: %s", error)
            return Ringing([delivery for delivery, _ in rang], left_out=True)
        early = {item.at for _, item in rang if item.at is not None and item.at > due.now}
        later = {due.next} if due.next is not None else set[datetime]()
        if rest is not None:
            later.add(alarm_time(rest, due.now))
        later -= early
        return Ringing(
            [delivery for delivery, _ in rang],
            due,
            [publications.alarm(at, due.now) for at in early],
            due.publishing or bool(without),
            [publications.alarm(at, due.now) for at in later],
        )

    def postpone(self, result: CommitResult) -> None:
        """Leave out chats that the database does not take now, so that others behind them get their turn."""
        until = clock() + LONGEST_DELAY
        self._postponed |= {
            delivery.chat_id: until
            for delivery in result.postponed
            if isinstance(delivery, ChatAlarm)
        }
