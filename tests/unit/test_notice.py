"""While no provisioner has taken a chat's build, a notice says so and names the pool."""

from __future__ import annotations

import pytest

from statemachine.chat import Chat
from statemachine.events import BuildRequested, Data, Event, TemplateRef, Transition
from statemachine.views import notice, state_changed
from tests.unit.facts import (
    CHAT,
    START,
    STOP,
    canceled,
    chat,
    event,
    failed,
    started,
    succeeded,
    then_late,
    uid,
)


def requested(number: int = 1, transition: Transition = START, pool: str = "moon") -> Event:
    data: Data = BuildRequested(
        workspace_id=uid("w"),
        workspace_name="w",
        owner_name="ann",
        build_id=uid(f"w/b{number}"),
        build_number=number,
        transition=transition,
        template=TemplateRef(id=uid("t"), name="t", version_id=uid("v"), pool=pool),
    )
    return event(data)


def test_a_build_that_no_provisioner_has_begun_has_a_notice_with_its_pool() -> None:
    words = notice(chat(requested()))

    assert words is not None
    assert "pool 'moon'" in words
    assert "build 1 " in words


def test_a_stop_that_no_provisioner_has_begun_has_a_notice() -> None:
    words = notice(chat(requested(), succeeded(), requested(2, STOP)))

    assert words is not None
    assert "build 2 " in words


@pytest.mark.parametrize(
    "fact",
    [started(), succeeded(), failed(), canceled()],
    ids=["started", "succeeded", "failed", "canceled"],
)
def test_any_fact_about_the_build_ends_the_notice(fact: Event) -> None:
    assert notice(chat(requested(), fact)) is None


def test_a_chat_without_a_build_has_no_notice() -> None:
    assert notice(Chat(chat_id=CHAT)) is None


def test_a_build_made_elsewhere_has_no_notice() -> None:
    assert notice(chat(started())) is None


def test_after_the_limit_the_failure_replaces_the_notice() -> None:
    over = chat(*then_late(requested()))

    assert notice(over) is None
    assert over.failure is not None
    assert "no provisioner of pool 'moon'" in over.failure.message


def test_the_notice_is_not_part_of_the_published_state() -> None:
    """Frontends compare versions, so a version must never change after it was published."""
    assert "notice" not in state_changed(chat(requested()))
