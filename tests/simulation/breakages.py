"""The protections, each disabled in turn: the simulation must notice every one.

A patch disables a protection in the running product for one run; no release contains it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, Final

from msgspec.structs import replace

from bus import Delivery, Outbound
from handlers.worker.recovery import republisher
from handlers.worker.recovery.republisher import Republisher
from handlers.worker.worker import Worker
from statemachine import events, fold, lifetimes
from statemachine import step as steps
from statemachine.chat import Chat
from statemachine.step import PublishCancel
from statemachine.store import Changes, DueAlarms, Look
from statemachine.workspace import WorkspaceRecord
from tests.doubles.memory_store import MemoryStore
from tests.simulation.edge import replaced
from tests.simulation.network import SimulatedBus


def _ack_before_commit() -> Callable[[], None]:
    commit = Worker.commit

    async def early(self: Worker, deliveries: Sequence[Delivery]) -> Any:
        for delivery in deliveries:
            await delivery.ack()
        return await commit(self, deliveries)

    return replaced(Worker, "commit", early)


def _no_dedupe_by_identity() -> Callable[[], None]:
    look = MemoryStore.look

    async def all_new(self: Any, wanted: Any) -> Look:
        found = await look(self, wanted)
        found.known.clear()
        return found

    undo = [replaced(MemoryStore, "look", all_new), _events_of_remembered_chats_not_compared()]
    return lambda: [undone() for undone in undo] and None


def _events_of_remembered_chats_not_compared() -> Callable[[], None]:
    changed_rows = MemoryStore.changed_rows

    def only_rows(self: Any, changes: Changes) -> set[str]:
        return changed_rows(self, dataclasses.replace(changes, identities=[]))

    return replaced(MemoryStore, "changed_rows", only_rows)


def _conflicts_ignored() -> Callable[[], None]:
    def none(self: Any, changes: Any) -> set[str]:
        del self, changes
        return set()

    return replaced(MemoryStore, "changed_rows", none)


def _nothing_published_on_a_repeat() -> Callable[[], None]:
    async def nothing(self: Any, chat_ids: Any) -> None:
        del self, chat_ids

    return replaced(Republisher, "publish_missing", nothing)


def _state_without_expected_sequence() -> Callable[[], None]:
    publish_many = SimulatedBus.publish_many

    async def trusting(self: Any, messages: Sequence[Outbound]) -> Any:
        return await publish_many(self, [replace(m, expected_last=None) for m in messages])

    return replaced(SimulatedBus, "publish_many", trusting)


def _alarms_deleted_before_they_are_handled() -> Callable[[], None]:
    due = MemoryStore.due_alarms

    async def once(self: Any, limit: int, **more: Any) -> DueAlarms:
        found = await due(self, limit, **more)
        alarms = [alarm for some in found.alarms.values() for alarm in some]
        await self.delete_alarms(alarms, unhandled=True)
        return found

    return replaced(MemoryStore, "due_alarms", once)


def _alarms_not_set_again() -> Callable[[], None]:
    async def nothing(self: Any, now: Any) -> None:
        del self, now

    return replaced(Republisher, "_set_alarms", nothing)


def _older_build_followed() -> Callable[[], None]:
    folded = fold._build_fact

    def any_is_followed(chat: Chat, fact: events.ProvisionerFact, at: datetime) -> fold.Folded:
        current, build = chat.current, chat.build
        mine = current is not None and current.id == fact.workspace_id
        if mine and build is not None and fact.build_number < build.number:
            seen = fold.first_seen(build, fact, at)
            return fold._follow(chat, current, fold._with_newer_build(current, seen))
        return folded(chat, fact, at)

    return replaced(fold, "_build_fact", any_is_followed)


def _purge_past_unacknowledged_events() -> Callable[[], None]:
    purge = SimulatedBus.purge

    async def all_events(self: Any, stream: str, last: int) -> None:
        del last
        await purge(self, stream, (await self.stream_info(stream)).last)

    return replaced(SimulatedBus, "purge", all_events)


def _lost_tail_not_published_again() -> Callable[[], None]:
    """Publish nothing by index and, because repeated facts make up for that here, nothing on a repeat either."""

    async def nothing(self: Any, *_chats: Any) -> None:
        del self

    return replaced(Republisher, "_publish_missing", nothing)


def _activity_ignored() -> Callable[[], None]:
    return replaced(lifetimes, "active", lambda _chat, _fact, _at: None)


def _cancel_not_published() -> Callable[[], None]:
    def none(chat: Chat, because: Any = None) -> list[PublishCancel]:
        del chat, because
        return []

    undo = [replaced(module, "canceled_builds", none) for module in (steps, republisher)]
    return lambda: [undone() for undone in undo] and None


def _failed_attempt_not_repeated() -> Callable[[], None]:
    return replaced(lifetimes, "_with_retry", lambda record, _retry, _at: record)


def _deleted_on_no_evidence() -> Callable[[], None]:
    """Take the end of any build of a replaced workspace for the end of the workspace."""
    mark = fold._with_orphan_mark

    def gone(record: WorkspaceRecord, at: datetime) -> WorkspaceRecord:
        ended = record.build is not None and record.build.outcome is not None
        return WorkspaceRecord(id=record.id, deleted=True) if ended else mark(record, at)

    return replaced(fold, "_with_orphan_mark", gone)


BREAKAGES: Final[dict[str, Callable[[], Callable[[], None]]]] = {
    "ack before commit": _ack_before_commit,
    "no dedupe by identity": _no_dedupe_by_identity,
    "events of remembered chats not compared": _events_of_remembered_chats_not_compared,
    "conflicts ignored": _conflicts_ignored,
    "nothing published on a repeat": _nothing_published_on_a_repeat,
    "state without expected sequence": _state_without_expected_sequence,
    "alarms deleted before they are handled": _alarms_deleted_before_they_are_handled,
    "alarms not set again": _alarms_not_set_again,
    "older build followed": _older_build_followed,
    "purge past unacknowledged events": _purge_past_unacknowledged_events,
    "lost tail of a derived stream not published again": _lost_tail_not_published_again,
    "activity ignored": _activity_ignored,
    "cancel not published": _cancel_not_published,
    "failed attempt not repeated": _failed_attempt_not_repeated,
    "replaced workspace deleted on no evidence": _deleted_on_no_evidence,
}


SOON: Final = {
    "ack before commit": 12,
    "alarms deleted before they are handled": 2840,
    "alarms not set again": 99,
    "conflicts ignored": 1,
    "lost tail of a derived stream not published again": 43,
    "nothing published on a repeat": 1275,
    "older build followed": 11,
    "purge past unacknowledged events": 6,
    "activity ignored": 340,
    "cancel not published": 122,
    "failed attempt not repeated": 127,
    "replaced workspace deleted on no evidence": 360,
}
"""The seed to begin with, so that the breakage is caught soon."""


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Disable the named protection within the block; None disables nothing."""
    with ExitStack() as undone:
        if name is not None:
            undone.callback(BREAKAGES[name]())
        yield
