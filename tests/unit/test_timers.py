"""The timers of a chat, for its limit, the lifetime of its workspace and its orphans; and their alarms."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from handlers.shared_settings import milliseconds
from handlers.worker.call_limits import policy
from statemachine.calls import Known
from statemachine.chat import Chat, Limits, chat_from_json, chat_to_json
from statemachine.events import BuildRequested, Event, OrphanGracePassed, TtlPassed, event_digest
from statemachine.states import State
from statemachine.step import AlarmRang, InboundEvent, Input, Loaded, Step, step
from statemachine.templates import Catalog
from statemachine.timers import (
    FARTHEST,
    TimerKind,
    alarm_time,
    due_at,
    needs_no_timer,
    overdue,
    timers_of,
)
from tests.unit.facts import (
    CHAT,
    DELETE,
    LIMITS,
    NOW,
    START,
    STOP,
    agents,
    apply,
    canceled,
    connected,
    deleted,
    event,
    failed,
    late,
    requested,
    started,
    succeeded,
    uid,
)

HOUR = timedelta(hours=1)
GRACE = LIMITS.orphan_grace
MILLISECOND = timedelta(milliseconds=1)


def limited(number: int = 1, ttl: timedelta | None = HOUR, workspace: str = "w") -> Event:
    """Return the request of a start build with a lifetime."""
    asked = requested(number, START, workspace).data
    assert isinstance(asked, BuildRequested)
    return event(asked.model_copy(update={"ttl_ms": None if ttl is None else ttl // MILLISECOND}))


def hours(*facts: Event) -> Chat:
    """Return a chat that received one fact per hour, the first at NOW."""
    workspace = Chat(chat_id=CHAT)
    for number, fact in enumerate(facts):
        workspace = apply(workspace, fact, NOW + number * HOUR).chat
    return workspace


def ends(chat: Chat) -> datetime | None:
    """Return when the workspace's lifetime ends, after a check that its timer agrees."""
    due = due_at(chat, TimerKind.TTL, LIMITS)
    assert due in (None, chat.stops_at)
    assert due == chat.expires_at == timers_of(chat, LIMITS).get(TimerKind.TTL)
    assert due is None or not needs_no_timer(chat)
    return due


EXPIRED = event(TtlPassed(build_id=uid("w/b1")))
CHILD = agents(child="nobody")
AGAIN = 2 + 1 / 60
"""A stop failed after the end of the lifetime, three hours from the beginning: it is tried again after a minute."""


@pytest.mark.parametrize(
    ("facts", "ended"),
    [
        ([limited()], None),
        ([limited(), started()], None),
        ([limited(), succeeded()], 1),
        ([limited(), succeeded(made=())], 1),
        ([limited(), succeeded(made=CHILD)], 1),
        ([limited(), started(), succeeded(), connected(1)], 2),
        ([limited(), succeeded(), succeeded()], 1),
        ([limited(), failed()], None),
        ([limited(), canceled()], None),
        ([limited(ttl=None), succeeded()], None),
        ([limited(ttl=timedelta(0)), succeeded()], None),
        ([limited(), succeeded(), requested(2, STOP)], None),
        ([limited(), succeeded(), started(2, STOP)], None),
        ([limited(), succeeded(), requested(2, DELETE)], None),
        ([limited(), succeeded(), requested(2, STOP), succeeded(2, STOP)], None),
        ([limited(), succeeded(), requested(2, STOP), failed(2, STOP)], AGAIN),
        ([limited(), succeeded(), requested(2, STOP), canceled(2, STOP)], AGAIN),
        ([limited(), succeeded(), requested(2, DELETE), failed(2, DELETE)], None),
        ([limited(), succeeded(), requested(2, DELETE), canceled(2, DELETE)], 1),
        (
            [
                limited(),
                succeeded(),
                requested(2, STOP),
                succeeded(2, STOP),
                requested(3, DELETE),
                canceled(3, DELETE),
            ],
            None,
        ),
        ([limited(), requested(2, STOP), failed(2, STOP), succeeded()], 3),
        (
            [
                limited(),
                succeeded(),
                requested(2, STOP),
                limited(3),
                succeeded(3),
                requested(4, DELETE),
                succeeded(2, STOP),  # late: the end of a stop from before the last start
                canceled(4, DELETE),
            ],
            4,
        ),
        (
            [
                limited(),
                succeeded(),
                requested(3, STOP),
                requested(4, DELETE),
                succeeded(2, STOP),  # late: the last stop is build 3, which has not ended
                canceled(4, DELETE),
            ],
            1,
        ),
        ([limited(), succeeded(), deleted()], None),
        ([limited(), succeeded(), started(2)], None),
        ([limited(), succeeded(), started(2), failed(2)], None),
        ([limited(), succeeded(), started(2), succeeded(2)], 3),
        ([limited(), succeeded(), limited(2, None), succeeded(2)], None),
        ([limited(ttl=None), succeeded(), limited(2), succeeded(2)], 3),
        ([started(), succeeded()], None),
        ([limited(), succeeded(), EXPIRED], None),
        ([limited(), succeeded(), EXPIRED, requested(2, STOP), failed(2, STOP)], None),
        ([limited(), succeeded(), EXPIRED, requested(2, STOP), limited(3), succeeded(3)], 5),
        ([limited(), succeeded(), limited(1, HOUR, "v")], None),
        ([limited(), succeeded(), limited(1, HOUR, "v"), succeeded(workspace="v")], 3),
    ],
)
def test_a_lifetime_counts_from_the_end_of_the_last_successful_start(
    facts: list[Event], ended: float | None
) -> None:
    expected = None if ended is None else NOW + ended * HOUR + HOUR

    assert ends(hours(*facts)) == expected


def test_a_start_that_succeeds_after_its_limit_begins_the_lifetime() -> None:
    chat = hours(limited())
    over = apply(chat, late(chat), NOW + HOUR).chat

    built = apply(over, succeeded(), NOW + 5 * HOUR).chat

    assert ends(over) is None
    assert ends(built) == NOW + 6 * HOUR


@pytest.mark.parametrize(
    "between",
    [
        [],
        [requested(2, STOP), succeeded(2, STOP)],
        [started(2, STOP), succeeded(2, STOP)],
        [requested(2, STOP), failed(2, STOP)],
        [EXPIRED, requested(2, STOP), succeeded(2, STOP)],
    ],
)
def test_a_start_made_elsewhere_has_the_last_known_lifetime(between: list[Event]) -> None:
    facts = [limited(), succeeded(), *between, started(3), succeeded(3)]

    assert ends(hours(*facts)) == NOW + len(facts) * HOUR


def test_a_lifetime_does_not_depend_on_the_senders_clock() -> None:
    slow = succeeded().model_copy(update={"time": NOW - timedelta(days=700)})

    assert ends(hours(limited(), slow)) == NOW + 2 * HOUR


def test_a_restored_snapshot_needs_the_same_timers() -> None:
    chat = hours(limited(), succeeded(), other(1))
    kept = chat_from_json(chat_to_json(chat))

    assert timers_of(kept, LIMITS) == timers_of(chat, LIMITS)
    assert timers_of(chat, LIMITS).keys() == set(TimerKind) - {TimerKind.RETRY}


def test_a_chat_without_deadlines_needs_no_timer() -> None:
    chat = hours(requested(), succeeded(made=()))

    assert needs_no_timer(chat)
    assert [due_at(chat, purpose, LIMITS) for purpose in TimerKind] == [None] * 4
    assert timers_of(chat, LIMITS) == {}
    assert not needs_no_timer(hours(requested()))


def other(number: int, transition: str = "start") -> Event:
    return succeeded(1, START if transition == "start" else STOP, workspace=f"other {number}")


def grace(chat: Chat) -> datetime | None:
    return due_at(chat, TimerKind.ORPHAN, LIMITS)


def names(chat: Chat, now: datetime) -> list[str]:
    found = overdue(chat, now, LIMITS)
    return [name for name in map("other {}".format, range(9)) if uid(name) in {f.id for f in found}]


def test_orphans_get_one_timer_after_the_other() -> None:
    """Each orphan gets its own timer, in turn, and exactly once."""
    chat = hours(requested(), other(1), other(2), other(3, "stop"))
    first = grace(chat)
    assert first is not None
    assert first == NOW + HOUR + GRACE
    assert names(chat, first - MILLISECOND) == []
    assert names(chat, first) == ["other 1"]
    assert names(chat, first + 2 * HOUR) == ["other 1", "other 2"]
    assert grace(hours(requested(), other(1))) == first, "those that come later change no timer"

    passed = event(OrphanGracePassed(workspace_id=uid("other 1")))
    chat = apply(chat, passed, first).chat
    second = grace(chat)

    assert second is not None
    assert second == NOW + 2 * HOUR + GRACE
    assert names(chat, second) == ["other 2"]
    chat = apply(chat, event(OrphanGracePassed(workspace_id=uid("other 2")))).chat
    assert grace(chat) is None
    assert TimerKind.ORPHAN not in timers_of(chat, LIMITS)
    assert not needs_no_timer(chat), "operators find it by this"


def test_the_grace_period_follows_the_present_setting() -> None:
    chat = hours(requested(), other(1))

    short = due_at(chat, TimerKind.ORPHAN, Limits(orphan_grace=MILLISECOND))

    assert short == NOW + HOUR + MILLISECOND


# -- alarms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("microseconds", "expected"),
    [
        (0, 0),
        (1, 250_000),
        (249_999, 250_000),
        (250_000, 250_000),
        (250_001, 500_000),
        (750_001, 1_000_000),
        (999_999, 1_000_000),
    ],
)
def test_an_alarm_rings_up_to_a_quarter_of_a_second_later_and_never_earlier(
    microseconds: int, expected: int
) -> None:
    due = NOW.replace(microsecond=0) + timedelta(microseconds=microseconds)

    assert alarm_time(due, NOW) == NOW.replace(microsecond=0) + timedelta(microseconds=expected)


@pytest.mark.parametrize("ahead", [timedelta(days=31), timedelta(days=4000)])
def test_an_alarm_is_thirty_days_ahead_at_most(ahead: timedelta) -> None:
    assert alarm_time(NOW + ahead, NOW) == alarm_time(NOW + timedelta(days=30), NOW)
    assert timedelta(days=30) == FARTHEST


def test_the_alarm_of_a_timer_that_is_overdue_is_in_the_past() -> None:
    """NATS rings it at once."""
    assert alarm_time(NOW - HOUR, NOW) == NOW - HOUR


KNOWN = Known(Catalog({}, {}), seed=b"seed")


def heard(fact: Event) -> InboundEvent:
    return InboundEvent(fact, event_digest(fact.source, fact.id))


def taken(chat: Chat, at: datetime, *inputs: Input) -> Step:
    return step(Loaded(chat), inputs, KNOWN, LIMITS, at)


def rang(*at: datetime) -> AlarmRang:
    return AlarmRang(CHAT, at)


def test_a_new_timer_sets_an_alarm_and_an_unchanged_one_sets_none_again() -> None:
    build = taken(Chat(chat_id=CHAT), NOW, heard(limited()))
    assert build.chat.deadline is not None
    assert build.alarms == {alarm_time(build.chat.deadline, NOW)}

    begun = taken(build.chat, NOW + HOUR / 60, heard(started()))
    assert begun.chat.deadline == build.chat.deadline
    assert begun.alarms == set()

    ready = taken(begun.chat, NOW + HOUR / 60, heard(succeeded(made=())))
    assert ready.chat.deadline is None
    assert ready.chat.expires_at is not None
    assert ready.alarms == {alarm_time(ready.chat.expires_at, NOW)}


def test_an_alarm_that_rings_before_its_timer_is_due_is_set_again() -> None:
    chat = hours(limited())
    assert chat.deadline is not None
    early = chat.deadline - timedelta(seconds=1)

    found = taken(chat, early, rang(early))

    assert found.alarms == {alarm_time(chat.deadline, early)}
    assert found.rang == [early]
    assert found.chat is chat, "so its row is not written"
    assert found.entries == []
    assert found.effects == []


def test_the_alarm_of_a_far_timer_is_set_again_each_time() -> None:
    chat = hours(limited(ttl=timedelta(days=100)), succeeded(made=()))
    first = alarm_time(NOW + HOUR + timedelta(days=100), NOW + HOUR)
    assert first == NOW + HOUR + FARTHEST

    found = taken(chat, first, rang(first))

    assert found.alarms == {first + FARTHEST}
    assert found.chat is chat


def test_an_alarm_takes_effect_once_and_its_repeat_changes_nothing() -> None:
    chat = hours(limited())
    assert chat.deadline is not None

    passed = taken(chat, chat.deadline, rang(chat.deadline))
    again = taken(passed.chat, chat.deadline, AlarmRang(CHAT, (chat.deadline,), handled=True))

    assert passed.chat.state is State.BUILD_TIMED_OUT
    assert passed.alarms == set()
    assert not passed.repeats
    assert again.chat is passed.chat
    assert again.effects == []
    assert again.repeats, "so a worker publishes what may be missing"


def test_several_alarms_of_a_chat_take_effect_once() -> None:
    chat = hours(limited())
    assert chat.deadline is not None
    times = chat.deadline - MILLISECOND, chat.deadline

    passed = taken(chat, chat.deadline, rang(*times))

    assert [entry.event.data.name for entry in passed.entries] == ["deadline_passed"]
    assert passed.rang == [*times]


def test_an_overdue_timer_that_cannot_act_sets_no_alarm() -> None:
    """Its alarm would ring at once, again and again."""
    chat = hours(requested(), other(1))
    end = grace(chat)
    assert end is not None

    passed = taken(chat, end, rang(end))

    assert passed.notices, "nobody can stop this orphan"
    assert passed.alarms == set()
    assert taken(passed.chat, end + HOUR, rang(end + HOUR)).alarms == set()


def test_an_alarm_of_one_timer_sets_the_alarms_of_the_others() -> None:
    """Workers need not know for which timer an alarm was set."""
    chat = hours(limited(ttl=2 * HOUR), succeeded(made=()), other(1))
    end = grace(chat)
    assert end is not None
    assert chat.expires_at is not None
    earlier = min(end, chat.expires_at) - MILLISECOND

    found = taken(chat, earlier, rang(earlier))

    assert found.alarms == {alarm_time(at, earlier) for at in (end, chat.expires_at)}


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", 7_200_000),
        ("1h30m", 5_400_000),
        (" 45s ", 45_000),
        ("1.5ms", 1),
        ("0.5ms", None),
        ("0", None),
        ("0s", None),
        ("", None),
        ("876000h", 876_000 * 3_600_000),
    ],
)
def test_a_lifetime_of_at_least_a_millisecond_counts(text: str, expected: int | None) -> None:
    assert policy({"chat_workspace_ttl": text}).ttl_ms == expected


@pytest.mark.parametrize(
    "text",
    ["-2h", "soon", "2 h", "2h-1m", "1e9h", "2", "9" * 30 + "h", "9" * 400 + "ms", "∞", "NaN"],
)
def test_an_invalid_lifetime_setting_is_logged_and_ignored(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="h"):
        milliseconds(text)

    assert policy({"chat_workspace_ttl": text}).ttl_ms is None
    assert "chat_workspace_ttl" in caplog.text
