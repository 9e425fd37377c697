"""The data that a worker looks up before it evaluates calls."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine.calls import Call
from statemachine.chat import Chat
from statemachine.events import BuildRequested, Event, TemplateRef, ToolRequested
from statemachine.lookups import Lookups, lookups
from tests.unit.driver import ANN, ORG, asked
from tests.unit.facts import (
    CHAT,
    NOW,
    START,
    STOP,
    chat,
    connected,
    event,
    failed,
    requested,
    started,
    succeeded,
    uid,
)

TEMPLATE = uid("template")


def found(
    templates: tuple[str, ...] = (),
    versions: tuple[str, ...] = (),
    *,
    organizations: tuple[str, ...] = (),
    owners: tuple[str, ...] = (),
) -> Lookups:
    return Lookups(*map(frozenset, (organizations, templates, versions, owners)))


def called(tool: str, **args: Any) -> ToolRequested:
    request = asked(tool, **args).data
    assert isinstance(request, ToolRequested)
    return request


def waiting(tool: str, **args: Any) -> Call:
    of = {"organization_id": ORG, "owner_id": ANN, "owner_name": "ann", "asked_at": NOW}
    return Call(chat_id=CHAT, call_id="c", tool=tool, args=args, order=1, **of)


def templated(number: int, workspace: str = "w") -> Event:
    request = requested(number, START, workspace).data
    assert isinstance(request, BuildRequested)
    ref = TemplateRef(id=TEMPLATE, name="python", version_id=uid("asked"), pool="local")
    return event(request.model_copy(update={"template": ref}))


def test_no_calls_and_chats_need_no_lookups() -> None:
    new, talk = Chat(chat_id=CHAT), [asked("stop_workspace"), connected(1), failed()]

    assert lookups([], [], []) == found()
    assert lookups([called("start_workspace")], [new], talk) == found()


@pytest.mark.parametrize("make", [called, waiting])
def test_calls_need_the_templates_that_they_name(make: Any) -> None:
    upper = f" {TEMPLATE.upper()} "

    assert lookups([make("list_templates")], [], []) == found(organizations=(ORG,))
    assert lookups([make("read_template", template_id=upper)], [], []) == found((TEMPLATE,))
    create = make("create_workspace", template_id=upper)
    assert lookups([create], [], []) == found((TEMPLATE,), owners=(ANN,))


@pytest.mark.parametrize("bad", [None, "", "python", 7, ["x"], TEMPLATE + "0", TEMPLATE + "\n0"])
def test_invalid_ids_are_not_looked_up(bad: Any) -> None:
    assert lookups([called("read_template", template_id=bad)], [], []) == found()


def test_templates_and_versions_of_facts_are_looked_up() -> None:
    told = started(template_id=TEMPLATE, template_version_id=uid("told"))

    assert lookups([], [], [told, started(2)]) == found((TEMPLATE,), (uid("told"),))
    assert lookups([], [], [succeeded()]) == found((), (uid("version"),))


def test_templates_and_versions_of_chats_are_looked_up() -> None:
    mine = chat(started(template_id=TEMPLATE, template_version_id=uid("told")))
    assert lookups([], [mine], []) == found((TEMPLATE,), (uid("told"),))

    ours = chat(templated(1), succeeded())
    assert lookups([], [ours], []) == found((TEMPLATE,), (uid("asked"), uid("version")))
    stopped = chat(requested(2, STOP), of=ours)
    assert lookups([], [stopped], []).versions == {uid("asked"), uid("version")}


def test_templates_of_previous_workspaces_are_looked_up() -> None:
    other = started(workspace="x", template_id=uid("theirs"), template_version_id=uid("told"))
    there = chat(templated(1), requested(1, START, "v"), other)

    assert lookups([], [there], []) == found((TEMPLATE, uid("theirs")), (uid("asked"), uid("told")))
