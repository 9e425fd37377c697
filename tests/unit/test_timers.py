"""The timers of a chat: the lifetime of its workspace, and the grace time of its orphans."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from handlers.shared_settings import milliseconds
from handlers.worker.call_limits import policy
from statemachine.chat import Chat, Limits, chat_from_json, chat_to_json
from statemachine.events import BuildRequested, Event, OrphanGracePassed, TtlPassed
from statemachine.timers import ChatTimer, TimerKind, needs_no_timer, open_timer, overdue
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
    due = open_timer(chat, TimerKind.TTL, LIMITS)
    assert (due and due.at) == chat.expires_at
    assert due is None or not needs_no_timer(chat)
    return chat.expires_at


EXPIRED = event(TtlPassed(build_id=uid("w/b1")))
CHILD = agents(child="nobody")


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
        ([limited(), succeeded(), requested(2, STOP), failed(2, STOP)], 1),
        ([limited(), succeeded(), requested(2, STOP), canceled(2, STOP)], 1),
        ([limited(), succeeded(), requested(2, DELETE), failed(2, DELETE)], 1),
        (
            [
                limited(),
                succeeded(),
                requested(2, STOP),
                succeeded(2, STOP),
                requested(3, DELETE),
                failed(3, DELETE),
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
                failed(4, DELETE),
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
                failed(4, DELETE),
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
    facts: list[Event], ended: int | None
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


def test_a_timer_has_the_generation_of_its_own_lifetime() -> None:
    first = hours(limited(), succeeded())
    later = hours(limited(), succeeded(), requested(2, STOP), limited(3), succeeded(3))
    kept = chat_from_json(chat_to_json(first))

    one, other = open_timer(first, TimerKind.TTL, LIMITS), open_timer(later, TimerKind.TTL, LIMITS)

    assert one is not None
    assert other is not None
    assert one.generation != other.generation
    assert open_timer(kept, TimerKind.TTL, LIMITS) == one


def test_a_chat_without_deadlines_needs_no_timer() -> None:
    chat = hours(requested(), succeeded(made=()))

    assert needs_no_timer(chat)
    assert [open_timer(chat, purpose, LIMITS) for purpose in TimerKind] == [None] * 3
    assert not needs_no_timer(hours(requested()))


def other(number: int, transition: str = "start") -> Event:
    return succeeded(1, START if transition == "start" else STOP, workspace=f"other {number}")


def grace(chat: Chat) -> ChatTimer | None:
    return open_timer(chat, TimerKind.ORPHAN, LIMITS)


def names(chat: Chat, now: datetime) -> list[str]:
    found = overdue(chat, now, LIMITS)
    return [name for name in map("other {}".format, range(9)) if uid(name) in {f.id for f in found}]


def test_orphans_get_one_timer_after_the_other() -> None:
    """Each orphan gets its own timer, in turn, and exactly once."""
    chat = hours(requested(), other(1), other(2), other(3, "stop"))
    first = grace(chat)
    assert first is not None
    assert first.at == NOW + HOUR + GRACE
    assert names(chat, first.at - MILLISECOND) == []
    assert names(chat, first.at) == ["other 1"]
    assert names(chat, first.at + 2 * HOUR) == ["other 1", "other 2"]
    assert grace(hours(requested(), other(1))) == first, "those that come later change no timer"

    passed = event(OrphanGracePassed(workspace_id=uid("other 1")))
    chat = apply(chat, passed, first.at).chat
    second = grace(chat)

    assert second is not None
    assert second.at == NOW + 2 * HOUR + GRACE
    assert names(chat, second.at) == ["other 2"]
    chat = apply(chat, event(OrphanGracePassed(workspace_id=uid("other 2")))).chat
    assert grace(chat) is None
    assert not needs_no_timer(chat), "operators find it by this"


def test_the_grace_period_follows_the_present_setting() -> None:
    chat = hours(requested(), other(1))

    short = open_timer(chat, TimerKind.ORPHAN, Limits(orphan_grace=MILLISECOND))

    assert short is not None
    assert short.at == NOW + HOUR + MILLISECOND


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
