"""Workspaces other than a chat's current one: replaced ones, and ones that were made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine.calls import Known, Policy
from statemachine.chat import (
    MAX_PREVIOUS,
    Chat,
    chat_from_json,
    chat_to_json,
)
from statemachine.events import BuildRequested, Event, OrphanGracePassed, TemplateRef, TtlPassed
from statemachine.fold import Unmoved, newly_deleted, newly_named
from statemachine.machine import Ignored, Kept
from statemachine.replay import replay
from statemachine.states import State
from statemachine.tool_rules import expiry, orphan
from statemachine.workspace import WorkspaceRecord
from tests.unit.driver import ANN, PYTHON, asked, catalog, template
from tests.unit.facts import (
    CHAT,
    DELETE,
    LIMITS,
    NOW,
    START,
    STOP,
    apply,
    canceled,
    chat,
    connected,
    deleted,
    event,
    failed,
    lifecycle,
    place,
    requested,
    started,
    succeeded,
    uid,
    ways,
)
from tests.unit.logs import recorded

MINUTE = timedelta(minutes=1)
KNOWN = Known(catalog=catalog(PYTHON), policy=Policy(), seed=b"seed")
REPLACED = [requested(), succeeded(), connected(1), requested(1, START, "v")]
"""The chat's workspace `w`, which runs, was replaced by `v`."""


def templated(number: int = 1, transition: Any = START, workspace: str = "w") -> Event:
    """Return the request of a build with a known template."""
    asked = requested(number, transition, workspace).data
    assert isinstance(asked, BuildRequested)
    active = PYTHON.active
    ref = TemplateRef(id=PYTHON.id, name="python", version_id=active.id, pool="local")
    more = {"template": ref, "parameters": {"branch": "main"}}
    return event(asked.model_copy(update=more))


def of(workspace: Chat, name: str = "w") -> WorkspaceRecord:
    found = workspace.previous_workspace(uid(name))
    assert found is not None
    return found


def orphaned(workspace: Chat) -> list[str]:
    names = {uid(name): name for name in "uvwxyz"}
    return sorted(names[record.id] for record in workspace.orphans)


def grace_over(name: str) -> Event:
    return event(OrphanGracePassed(workspace_id=uid(name)))


# -- replaced workspaces ------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in State if state is not State.NONE])
def test_a_replaced_workspace_is_an_orphan_until_its_stop_is_requested(
    state: State,
) -> None:
    runs = state.name in [
        "AGENT_CONNECTING",
        "SCRIPTS_RUNNING",
        "READY",
        "SELECTION_ERROR",
        "AGENT_NOT_READY",
        "SCRIPTS_FAILED",
        "SCRIPTS_TIMED_OUT",
        "STOP_FAILED",
        "STOP_CANCELED",
        "STOP_ABANDONED",
    ]
    left = chat(*ways()[state], requested(1, START, "v"))

    assert orphaned(left) == (["w"] if runs else [])
    build = of(left).build
    assert build is not None
    after = apply(left, requested(build.number + 1, STOP))

    assert isinstance(after, Ignored)
    assert after.outcome == "foreign"
    assert orphaned(after.chat) == []
    assert place(after.chat) == place(left)


def test_after_a_failed_stop_of_a_failed_start_there_is_nothing_to_stop() -> None:
    left = chat(
        requested(), failed(), requested(2, STOP), failed(2, STOP), requested(1, START, "v")
    )

    assert orphaned(left) == []


@pytest.mark.parametrize("end", [failed, canceled])
@pytest.mark.parametrize(("start", "runs"), [([], True), ([failed()], False)])
def test_a_workspace_whose_delete_failed_may_run_unless_its_start_failed(
    start: list[Event], runs: bool, end: Any
) -> None:
    left = chat(requested(), *start, requested(2, DELETE), end(2, DELETE), requested(1, START, "v"))

    assert orphaned(left) == (["w"] if runs else [])


@pytest.mark.parametrize(
    ("facts", "runs"),
    [
        ([], False),
        ([started(2, STOP)], False),
        ([succeeded(2, STOP)], False),
        ([failed(2, STOP)], True),
        ([canceled(2, STOP)], True),
        ([failed(2, STOP), succeeded(2, STOP)], True),
        ([succeeded(2, STOP), failed(2, STOP)], False),
        ([failed(2, STOP), deleted()], False),
        ([failed(2, STOP), requested(3, STOP)], False),
        ([failed(2, STOP), requested(3, STOP), succeeded(3, STOP)], False),
        ([failed(2, STOP), requested(3, STOP), failed(3, STOP)], True),
        ([failed(2, STOP), succeeded(3, DELETE)], False),
        ([failed(2, STOP), failed(3, DELETE)], True),
        ([succeeded(2, STOP), started(3)], False),
        ([succeeded(2, STOP), succeeded(3)], True),
        ([succeeded(2, STOP), failed(3)], False),
        ([failed(2, STOP), failed(1, STOP)], True),
        ([succeeded(2, STOP), succeeded(1)], False),
    ],
)
def test_the_end_of_its_stop_decides_whether_a_replaced_workspace_is_an_orphan(
    facts: list[Event], runs: bool
) -> None:
    before = chat(*REPLACED, requested(2, STOP))
    after = chat(*facts, of=before)

    assert orphaned(after) == (["w"] if runs else [])
    assert after.version == before.version
    assert (after.current, after.build, after.state) == (before.current, before.build, before.state)


def test_a_failed_stop_is_requested_again_with_the_next_number() -> None:
    asked = [templated(), succeeded(), templated(1, START, "v"), templated(2, STOP)]
    left = chat(*asked, failed(2, STOP))

    build = orphan(left, KNOWN, uid("w"), "label")

    assert build is not None
    assert (build.workspace_id, build.build_number, build.transition) == (uid("w"), 3, STOP)
    assert build.template is not None
    assert build.template.pool == "local"
    assert build.parameters == {"branch": "main"}
    assert orphan(chat(*asked), KNOWN, uid("w"), "label") is None, "somebody is at it"
    stopped = chat(*asked, failed(2, STOP), event(build), of=None)
    assert orphan(stopped, KNOWN, uid("w"), "label") is None


def test_a_previous_workspace_never_becomes_current_again() -> None:
    left = chat(*REPLACED, succeeded(2, DELETE, workspace="v"))
    assert left.state is State.NONE

    for fact in (started(3), succeeded(3), failed(4), connected(7, number=3)):
        decision = apply(left, fact)
        assert isinstance(decision, Ignored)
        assert decision.reason is Unmoved.FOREIGN
        left = decision.chat
    assert left.current is None


def test_facts_about_a_deleted_workspace_are_stale() -> None:
    left = chat(*REPLACED, requested(2, STOP), failed(2, STOP), deleted())

    for fact in (succeeded(), failed(5, STOP), succeeded(6), deleted()):
        decision = apply(left, fact)
        assert isinstance(decision, Ignored)
        assert decision.reason is Unmoved.STALE
        assert decision.chat == left


# -- workspaces made elsewhere ------------------------------------------------------------------

ELSEWHERE = [
    started(1, workspace="x", workspace_name="theirs", owner_name="bob", template_id=PYTHON.id),
    succeeded(1, workspace="x"),
]


def test_a_workspace_made_elsewhere_becomes_an_orphan_when_its_start_succeeds() -> None:
    begun = chat(requested(), ELSEWHERE[0])
    there = apply(begun, ELSEWHERE[1], NOW + MINUTE).chat

    assert orphaned(begun) == []
    record = of(there, "x")
    assert record.orphaned_at == NOW + MINUTE
    assert not record.ours
    assert (record.name, record.owner_name) == ("theirs", "bob")
    assert place(there)["workspace"] == place(chat(requested()))["workspace"]


def test_an_orphan_is_stopped_if_its_template_is_known_and_no_chat_has_it() -> None:
    there = chat(requested(), *ELSEWHERE)

    build = orphan(there, KNOWN, uid("x"), "label")

    assert build is not None
    assert (build.workspace_id, build.workspace_name) == (uid("x"), "theirs")
    assert (build.build_number, build.transition, build.owner_name) == (2, STOP, "bob")
    assert build.template is not None
    assert build.template.id == PYTHON.id
    nowhere = Known(catalog=catalog(), policy=Policy())
    assert orphan(there, nowhere, uid("x"), "label") is None
    had = Known(catalog=catalog(PYTHON), policy=Policy(), had={uid("x")})
    assert orphan(there, had, uid("x"), "label") is None
    assert orphan(there, KNOWN, uid("y"), "label") is None


def test_the_end_of_a_grace_period_is_handled_once() -> None:
    there = chat(requested(), *ELSEWHERE)

    after = apply(there, grace_over("x"))

    assert isinstance(after, Kept)
    assert of(after.chat, "x").grace_over
    assert orphaned(after.chat) == ["x"], "it is listed for as long as it runs"
    assert apply(after.chat, grace_over("x")).chat == after.chat
    assert apply(there, grace_over("y")).chat == there


def test_a_restarted_orphan_gets_a_new_grace_period() -> None:
    there = chat(requested(), *ELSEWHERE, grace_over("x"))
    again = chat(started(2, STOP, "x"), succeeded(2, STOP, workspace="x"), of=there)

    after = apply(again, succeeded(3, workspace="x"), NOW + MINUTE).chat

    assert orphaned(again) == []
    record = of(after, "x")
    assert (record.orphaned_at, record.grace_over) == (NOW + MINUTE, False)


def test_an_orphan_whose_template_becomes_known_is_handled_again() -> None:
    newer = Known(catalog=catalog(template(version="new")), policy=Policy())
    there = chat(requested(), *ELSEWHERE[1:], grace_over("x"))
    assert orphan(there, newer, uid("x"), "label") is None, "its version is not known here"

    there = chat(ELSEWHERE[0], of=there)

    assert not of(there, "x").grace_over
    assert orphan(there, newer, uid("x"), "label") is not None
    seen_to = chat(grace_over("x"), event(ELSEWHERE[0].data), of=there)
    assert of(seen_to, "x").grace_over


def test_the_grace_period_does_not_depend_on_the_senders_clock() -> None:
    for year in (1, 1970, 9999):
        told = succeeded(workspace="x").model_copy(update={"time": NOW.replace(year=year)})

        assert of(chat(requested(), told), "x").orphaned_at == NOW + timedelta(seconds=1)


FOREIGN: dict[str, tuple[list[Event], bool]] = {
    "start": ([*ELSEWHERE], True),
    "start, stop": ([*ELSEWHERE, started(2, STOP, "x"), succeeded(2, STOP, workspace="x")], False),
    "start, stop failed": ([*ELSEWHERE, failed(2, STOP, workspace="x")], True),
    "start, stop, start": (
        [*ELSEWHERE, succeeded(2, STOP, workspace="x"), started(3, START, "x"), succeeded(3, workspace="x")],
        True,
    ),
    "start, delete": ([*ELSEWHERE, succeeded(2, DELETE, workspace="x")], False),
    "start, gone": ([*ELSEWHERE, deleted("x")], False),
    "start failed": ([started(1, START, "x"), failed(workspace="x")], False),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_the_order_of_facts_about_another_workspace_does_not_matter(name: str) -> None:
    facts, runs = FOREIGN[name]
    seen: list[Any] = []
    for order in permutations(facts):
        there = chat(requested(), *order)
        assert orphaned(there) == (["x"] if runs else [])
        record = of(there, "x")
        build = record.build
        told = build and (build.id, build.number, build.transition, build.outcome)
        seen.append((record.deleted, (record.name, record.owner_name, record.template_id), told))
        if runs:
            assert orphan(there, KNOWN, uid("x"), "label") is not None or build is None

    assert all(one == seen[0] for one in seen)


def test_another_workspace_becomes_current_in_the_state_that_it_has_reached() -> None:
    """Facts that arrived while the chat had another workspace are kept, and apply at once."""
    there = chat(requested(), *ELSEWHERE)
    assert orphaned(there) == ["x"]

    after = apply(there, deleted(), NOW + MINUTE)

    assert after.outcome == "moved"
    assert after.chat.state is State.AGENT_CONNECTING
    assert after.chat.deadline == NOW + MINUTE + LIMITS.agent_connect
    ref = after.chat.current
    assert ref is not None
    assert (ref.id, ref.name, ref.owner_name) == (uid("x"), "theirs", "bob")
    assert ref.template_id == PYTHON.id
    assert orphaned(after.chat) == []
    assert after.chat.previous_workspace(uid("x")) is None
    assert after.chat.expires_at is None


def test_a_late_fact_of_an_older_build_still_counts_for_the_workspace() -> None:
    there = chat(requested(), succeeded(2, STOP, workspace="x"), deleted())

    after = chat(started(1, START, "x", template_id=PYTHON.id), of=there)

    assert after.state is State.STOPPED
    assert after.build is not None
    assert after.build.number == 2
    assert after.current is not None
    assert after.current.template_id == PYTHON.id


def test_deleted_and_previous_workspaces_do_not_become_current() -> None:
    gone = chat(requested(), *ELSEWHERE, succeeded(2, DELETE, workspace="x"), deleted())
    assert (gone.current, orphaned(gone)) == (None, [])
    assert apply(gone, succeeded(1, workspace="x")).chat.current is None

    assert chat(*REPLACED, deleted("v")).current is None


def test_a_workspace_known_only_from_agents_becomes_current_with_its_first_build() -> None:
    there = chat(
        requested(),
        connected(1, workspace="x"),
        deleted(),
        lifecycle(2, "ready", workspace="x"),
    )
    assert there.state is State.NONE

    assert chat(succeeded(workspace="x"), of=there).state is State.READY


def test_the_deletion_of_any_workspace_is_reported_once() -> None:
    there = chat(*REPLACED, *ELSEWHERE)
    for fact, gone in (
        (deleted(), ["w"]),
        (deleted("v"), ["v"]),
        (deleted("x"), ["x"]),
        (deleted("new"), ["new"]),
        (succeeded(2, DELETE), ["w"]),
        (succeeded(2, DELETE, workspace="v"), ["v"]),
        (failed(2, DELETE), []),
        (succeeded(2, STOP), []),
    ):
        after = apply(there, fact).chat

        assert newly_deleted(there, after) == tuple(uid(name) for name in gone)
        assert newly_deleted(after, apply(after, fact).chat) == ()


def test_a_success_after_the_failure_of_the_same_delete_has_no_effect() -> None:
    """Of two terminal facts of a build the first one counts: the chat keeps its workspace."""
    there = chat(requested(), succeeded(), requested(2, DELETE), failed(2, DELETE))

    after = apply(there, succeeded(2, DELETE)).chat

    assert after.current is not None
    assert newly_deleted(there, after) == ()
    assert newly_deleted(after, apply(after, deleted()).chat) == (uid("w"),)


def test_a_name_is_reserved_once_name_and_owner_are_known() -> None:
    elsewhere = started(1, START, "x", workspace_name="theirs")
    mine = (uid("x"), CHAT, ANN, "theirs")

    unbound, nobodys = Chat(chat_id=CHAT), chat(elsewhere)
    owned = chat(asked("list_templates"), of=nobodys)
    nameless = chat(asked("list_templates"), succeeded(workspace="x"))

    assert newly_named(unbound, nobodys) is None
    assert newly_named(nobodys, owned) == mine
    assert newly_named(nameless, chat(elsewhere, of=nameless)) == mine
    assert newly_named(owned, chat(succeeded(workspace="x"), of=owned)) is None


def test_a_later_build_does_not_reserve_the_name_again() -> None:
    there = chat(asked("list_templates"), *REPLACED)

    new = newly_named(there, chat(requested(1, START, "u"), of=there))

    assert new is not None
    assert new[0] == uid("u")
    assert newly_named(there, chat(requested(2, STOP, "v"), of=there)) is None
    assert newly_named(there, chat(requested(2, STOP, "w"), of=there)) is None


# -- memory -------------------------------------------------------------------------------------


def test_the_number_of_previous_workspaces_is_limited_and_the_least_important_go_first() -> None:
    there = chat(*REPLACED, succeeded(1, START, workspace="y"))
    for number in range(MAX_PREVIOUS + 9):
        there = chat(failed(1, START, workspace=f"other {number}"), of=there)

    assert len(there.previous) == MAX_PREVIOUS
    assert of(there).ours, "it was the chat's: must not come back"
    assert orphaned(there) == ["w", "y"]
    assert there.previous_workspace(uid("other 0")) is None
    assert there.previous_workspace(uid(f"other {MAX_PREVIOUS + 8}")) is not None

    for number in range(MAX_PREVIOUS + 9):
        there = chat(succeeded(1, START, workspace=f"running {number}"), of=there)

    assert len(there.previous) == MAX_PREVIOUS
    assert len(there.orphans) == MAX_PREVIOUS
    assert there.previous_workspace(uid("y")) is None


def test_of_many_replaced_workspaces_the_newest_are_remembered() -> None:
    there = Chat(chat_id=CHAT)
    for number in range(MAX_PREVIOUS + 3):
        there = chat(
            requested(1, START, f"mine {number}"), failed(workspace=f"mine {number}"), of=there
        )

    assert len(there.previous) == MAX_PREVIOUS
    assert there.previous_workspace(uid("mine 0")) is None
    assert there.previous_workspace(uid(f"mine {MAX_PREVIOUS + 1}")) is not None


# -- logs ---------------------------------------------------------------------------------------

ANYTHING = [
    *REPLACED,
    *ELSEWHERE,
    requested(2, STOP),
    failed(2, STOP),
    requested(3, STOP),
    succeeded(3, STOP),
    canceled(3, STOP),
    succeeded(2, STOP, workspace="v"),
    succeeded(workspace="v"),
    requested(1, START, "u"),
    succeeded(workspace="u"),
    failed(2, STOP, workspace="x"),
    succeeded(2, DELETE, workspace="x"),
    started(4, START, "x"),
    deleted(),
    deleted("v"),
    deleted("x"),
    grace_over("w"),
    grace_over("x"),
    event(TtlPassed(build_id=uid("w/b1"))),
]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(ANYTHING), max_size=16))
def test_replaying_logs_with_previous_workspaces_gives_the_same_snapshot(
    facts: list[Event],
) -> None:
    log = list(recorded(facts))
    workspace = Chat(chat_id=CHAT)
    for fact, entry in zip(facts, log, strict=True):
        if entry["outcome"] != "repeat":
            workspace = apply(workspace, fact, datetime.fromisoformat(entry["at"])).chat
        assert_sound(workspace)

    if log:
        replayed = replay(log)[CHAT]
        assert replayed.differences == ()
        assert replayed.chat.previous == workspace.previous
        assert replayed.chat.expires_at == workspace.expires_at


def assert_sound(workspace: Chat) -> None:
    """Assert that no workspace is stored twice, and no deleted or unfinished one is an orphan."""
    ids = [record.id for record in workspace.previous]
    assert len(set(ids)) == len(ids)
    assert workspace.current is None or workspace.current.id not in ids
    for record in workspace.orphans:
        assert not record.deleted
        assert record.build is not None
        assert record.build.outcome is not None
    assert all(record.orphaned_at or not record.grace_over for record in workspace.previous)
    read_back = chat_from_json(chat_to_json(workspace))
    assert read_back == workspace


# -- the lifetime -------------------------------------------------------------------------------


def lived(*facts: Event) -> Iterator[Event]:
    asked = templated().data
    assert isinstance(asked, BuildRequested)
    yield event(asked.model_copy(update={"ttl_ms": 1000}))
    yield from facts


def test_a_workspace_whose_lifetime_is_over_is_stopped_with_the_next_number() -> None:
    build = expiry(chat(*lived(succeeded())), KNOWN, "label")

    assert build is not None
    assert (build.build_number, build.transition, build.workspace_id) == (2, STOP, uid("w"))


@pytest.mark.parametrize(
    "facts",
    [[], [failed()], [succeeded(), requested(2, STOP)], [succeeded(), deleted()]],
    ids=["building", "failed", "being stopped", "gone"],
)
def test_a_workspace_that_does_not_run_is_not_stopped(facts: list[Event]) -> None:
    assert expiry(chat(*lived(*facts)), KNOWN, "label") is None


def test_a_lifetime_ends_only_once() -> None:
    there = chat(*lived(succeeded()))

    decision = apply(there, event(TtlPassed(build_id=uid("w/b1"))))

    assert isinstance(decision, Kept)
    assert expiry(decision.chat, KNOWN, "label") is None
