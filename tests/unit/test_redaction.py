"""Sensitive values are masked before they are stored or shown, and so are unknown parameters."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine.calls import Known
from statemachine.chat import Chat
from statemachine.events import BuildRequested, ToolRequested
from statemachine.mask import MASK
from statemachine.redaction import arguments, event
from statemachine.templates import Catalog
from tests.unit.driver import ORG, asked, catalog, template
from tests.unit.facts import CHAT, chat, deleted, requested, started, succeeded, uid
from tests.unit.facts import event as made

OPEN = """
name = "python"
[[parameter]]
name = "branch"
[[parameter]]
name = "token"
[build]
start = "true"
"""
CLOSED = OPEN.replace('"token"', '"token"\nsensitive = true')
SECRET = "s3cret"
ACTIVE = template(CLOSED, version="new")
OLD = template(OPEN, version="old")
KNOWN = Known(catalog=catalog(ACTIVE, older=(OLD.active,)))
NOTHING = Known(catalog=Catalog({}, {}))
NEW_CHAT = Chat(chat_id=CHAT)
BOTH = {"branch": "main", "token": SECRET}


def bound(version: str = "new") -> Chat:
    """Return a chat whose workspace was built from that version."""
    return chat(
        started(1, workspace_name="w", template_id=ACTIVE.id, template_version_id=uid(version))
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"parameters": BOTH}, {"parameters": {"branch": "main", "token": MASK}}),
        ({"parameters": {"Token": SECRET}}, {"parameters": {"Token": MASK}}),
        ({"parameters": {"token": [SECRET]}}, {"parameters": {"token": MASK}}),
        ({"parameters": {"nothing": {"x": SECRET}}}, {"parameters": {"nothing": MASK}}),
        ({"parameters": [SECRET]}, {"parameters": MASK}),
        ({"parameters": SECRET}, {"parameters": MASK}),
        ({"parameters": None}, {"parameters": None}),
        ({"parameters": {}}, {"parameters": {}}),
        ({"rich_parameters": [{"name": "token", "value": SECRET}]}, {"rich_parameters": MASK}),
        ({"token": SECRET}, {"token": MASK}),
        ({"name": "w", "preset_id": None}, {"name": "w", "preset_id": None}),
        ({"name": {"token": SECRET}}, {"name": MASK}),
    ],
)
def test_only_values_of_parameters_that_are_not_sensitive_are_shown(
    args: dict[str, Any], expected: dict[str, Any]
) -> None:
    of = {"template_id": f" {ACTIVE.id.upper()} "}
    before = {**of, **args}

    shown = arguments("create_workspace", before, NEW_CHAT, KNOWN)

    assert shown == {**of, **expected}
    assert SECRET not in str(shown)
    assert before == {**of, **args}, "the call itself keeps its values"


@pytest.mark.parametrize("template_id", [uid("another"), None, "", "python", 7, [SECRET]])
def test_all_values_for_an_unknown_template_are_hidden(template_id: object) -> None:
    args = {"template_id": template_id, "parameters": BOTH}

    shown = arguments("create_workspace", args, NEW_CHAT, KNOWN)

    assert shown["parameters"] == {"branch": MASK, "token": MASK}
    assert SECRET not in str(shown)


@pytest.mark.parametrize("tool", ["stop_workspace", "list_templates", "no_such_tool"])
def test_values_for_a_tool_without_parameters_are_hidden(tool: str) -> None:
    args = {"parameters": BOTH, "query": "py", "page": 2}

    shown = arguments(tool, args, bound(), KNOWN)

    assert shown == {"parameters": {"branch": MASK, "token": MASK}, "query": "py", "page": 2}


@pytest.mark.parametrize(
    ("workspace", "shown_branch"),
    [
        (bound("new"), "main"),
        (bound("old"), "main"),  # the token is sensitive in the active version
        (NEW_CHAT, MASK),
        (chat(started(1, template_id=uid("another"))), MASK),
        (chat(requested(), succeeded(), deleted()), MASK),
    ],
    ids=["of the active version", "of an older one", "no workspace", "unknown template", "deleted"],
)
def test_a_value_of_a_start_is_hidden_if_any_possible_version_declares_it_sensitive(
    workspace: Chat, shown_branch: str
) -> None:
    shown = arguments("start_workspace", {"parameters": BOTH}, workspace, KNOWN)

    assert shown["parameters"] == {"branch": shown_branch, "token": MASK}


def test_a_value_that_was_sensitive_in_the_last_version_stays_hidden() -> None:
    known = Known(catalog=catalog(OLD, older=(ACTIVE.active,)))

    shown = arguments("start_workspace", {"parameters": BOTH}, bound("new"), known)

    assert shown["parameters"] == {"branch": "main", "token": MASK}


def test_a_request_is_logged_unchanged_except_for_its_secrets() -> None:
    came = asked("create_workspace", template_id=ACTIVE.id, parameters=BOTH)

    shown = event(came, NEW_CHAT, KNOWN)

    assert SECRET not in shown.model_dump_json()
    assert isinstance(shown.data, ToolRequested)
    assert shown.data.args["parameters"]["branch"] == "main"
    assert (shown.id, shown.data.call_id, shown.data.organization_id) == (came.id, "c", ORG)
    assert event(asked("stop_workspace"), NEW_CHAT, NOTHING).data.args == {}  # type: ignore[union-attr]


@pytest.mark.parametrize(("known", "branch"), [(KNOWN, "main"), (NOTHING, MASK)])
def test_a_build_is_logged_without_its_secrets(known: Known, branch: str) -> None:
    """If the declarations of the parameters are unknown, all values are masked."""
    asked_for = requested().data
    assert isinstance(asked_for, BuildRequested)
    ref = {"id": ACTIVE.id, "name": "python", "version_id": uid("new"), "pool": "local"}
    values = asked_for.model_dump() | {"template": ref, "parameters": BOTH}
    build = made(BuildRequested.model_validate(values))

    shown = event(build, NEW_CHAT, known)

    assert isinstance(shown.data, BuildRequested)
    assert shown.data.parameters == {"branch": branch, "token": MASK}
    assert shown.data.build_id == asked_for.build_id


def test_a_build_without_a_template_shows_no_values() -> None:
    asked_for = requested().data
    assert isinstance(asked_for, BuildRequested)
    build = made(asked_for.model_copy(update={"parameters": BOTH}))

    assert SECRET not in event(build, NEW_CHAT, KNOWN).model_dump_json()


def test_facts_are_logged_unchanged() -> None:
    fact = succeeded()

    assert event(fact, bound(), KNOWN) == fact
