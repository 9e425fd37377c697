"""A provisioner whose name is bound to a pool can only report on workspaces of that pool."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from statemachine.chat import Chat
from statemachine.codec import decode, event_of, written
from statemachine.events import BuildRequested, Event, TemplateRef
from statemachine.fold import Unmoved
from statemachine.machine import Ignored, Moved, foreign_pool
from tests.unit.facts import (
    CHAT,
    STOP,
    apply,
    chat,
    deleted,
    failed,
    requested,
    started,
    succeeded,
    uid,
)


def of_pool(pool: str, number: int = 1, **more: object) -> Event:
    """Return the request of a build in that pool."""
    event = requested(number, **more)  # type: ignore[arg-type]
    assert isinstance(event.data, BuildRequested)
    template = TemplateRef(id=uid("t"), name="t", version_id=uid("v"), pool=pool)
    return event.model_copy(update={"data": event.data.model_copy(update={"template": template})})


def by(event: Event, pool: str | None) -> Event:
    return event.model_copy(update={"pool": pool})


def built(pool: str) -> Chat:
    return chat(of_pool(pool), started(), succeeded())


@pytest.mark.parametrize(
    "fact",
    [
        started(),
        succeeded(),
        failed(),
        started(2),
        succeeded(2, STOP),
        failed(2, STOP),
        started(9, build="made elsewhere"),
        deleted(),
    ],
    ids=lambda fact: f"{fact.data.name}",
)
def test_facts_about_a_workspace_of_another_pool_have_no_effect(fact: Event) -> None:
    for before in (chat(of_pool("gpu")), built("gpu"), chat(of_pool("gpu"), of_pool("gpu", 2))):
        decision = apply(before, by(fact, "cpu"))

        assert decision == Ignored(before, Unmoved.FOREIGN)


@pytest.mark.parametrize("pool", ["gpu", None])
def test_facts_from_the_own_pool_and_from_unbound_provisioners_count(pool: str | None) -> None:
    assert isinstance(apply(built("gpu"), by(started(2, STOP), pool)), Moved)


def test_a_workspace_made_elsewhere_has_no_pool() -> None:
    made = chat(started(), succeeded())

    assert isinstance(apply(made, by(started(2, STOP), "cpu")), Moved)
    assert foreign_pool(made, by(failed(), "cpu")) is None


def test_a_previous_workspace_keeps_its_pool() -> None:
    left = chat(of_pool("gpu"), started(), succeeded(), of_pool("cpu", workspace="other"))

    assert foreign_pool(left, by(deleted(), "cpu")) == "gpu"
    assert foreign_pool(left, by(failed(workspace="other"), "cpu")) is None


def test_the_pool_is_never_read_from_the_message_and_is_logged() -> None:
    said = json.loads(written(started().model_copy(update={"source": "/provisioner/p"})))
    raw = json.dumps({**said, "pool": "cpu"}).encode()

    heard = decode("provisioner", CHAT, "p", raw, content_type=None, now=datetime.now(UTC))

    assert isinstance(heard, Event)
    assert heard.pool is None
    assert "pool" not in json.loads(written(heard))
    assert event_of(json.loads(written(by(heard, "cpu")))) == by(heard, "cpu")
