"""Order never matters: the same facts lead the chat to the same state, whatever their order.

Each *field* of an agent follows the report with the highest sequence that concerns it: whether it
is connected, the lifecycle shown, and how its startup scripts ended. One highest sequence for all
fields would make order matter: after a reconnect, `agent_connected` with sequence 5 would hide a
`ready` with sequence 3 that arrives late, and the chat would wait for scripts that ended long ago.
Two facts are remembered whatever the sequences: that an agent was once connected, and that its
lifecycle was once beyond `created`.

A loss that the workers noticed divides an agent's reports: the next report undoes the loss whatever
its sequence is, and sequences are compared from that report on. So the loss separates two sets of
facts, and within each set order does not matter. If sequences continue to rise after the loss, a
late report with a lower one has no effect.

There is one exception: an agent that runs its scripts *again* (a lifecycle that ended the startup,
then `starting` or `start_error` with a higher sequence). The table keeps `ready` and `failed` then,
and a late fact with a lower sequence must change nothing, so the order decides. A test shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import islice, permutations
from random import Random

import pytest

from statemachine.chat import MAX_AGENTS, Chat
from statemachine.events import (
    AgentConnected,
    AgentDisconnected,
    AgentFact,
    BuildRequested,
    Event,
    ProvisionerFact,
)
from statemachine.states import State
from statemachine.views import state_changed
from tests.unit.driver import asked
from tests.unit.facts import (
    CHAT,
    DELETE,
    NOW,
    START,
    STOP,
    agents,
    apply,
    canceled,
    chat,
    connected,
    deleted,
    disconnected,
    event,
    failed,
    in_state,
    lifecycle,
    lost,
    path,
    place,
    requested,
    started,
    succeeded,
    uid,
)

S = State
MOST = 1500
"""How many orders of a run are tried. A run of up to six facts is tried in all orders."""

MANY = agents("zed", "b-Coderd-Chat", **{"kid-coderd-chat": "zed"})
RUNS: dict[str, tuple[list[Event], State, str | None]] = {
    "start with reconnect": (
        [
            requested(),
            started(),
            succeeded(),
            connected(1),
            lifecycle(2, "starting"),
            disconnected(3),
            connected(4),
            lifecycle(5, "ready"),
        ],
        S.READY,
        "connected",
    ),
    "connected and gone": (
        [requested(), succeeded(), connected(1), disconnected(2)],
        S.SCRIPTS_RUNNING,
        "disconnected",
    ),
    "ready before a reconnect": (
        [
            requested(),
            succeeded(),
            connected(1),
            lifecycle(2, "starting"),
            lifecycle(3, "ready"),
            disconnected(4),
            connected(5),
        ],
        S.READY,
        "connected",
    ),
    "no word of connecting": (
        [requested(), succeeded(), lifecycle(1, "created"), lifecycle(2, "starting")],
        S.SCRIPTS_RUNNING,
        "connected",
    ),
    "scripts that fail and then are ready": (
        [
            requested(),
            succeeded(),
            connected(1),
            lifecycle(2, "start_timeout"),
            lifecycle(3, "start_error"),
            lifecycle(4, "ready"),
            lifecycle(5, "shutting_down"),
        ],
        S.READY,
        "connected",
    ),
    "scripts that fail": (
        [
            requested(),
            succeeded(),
            connected(1),
            lifecycle(2, "starting"),
            lifecycle(3, "start_error"),
            lifecycle(4, "shutting_down"),
            lifecycle(5, "shutdown_error"),
        ],
        S.SCRIPTS_FAILED,
        "connected",
    ),
    "start and stop": (
        [
            requested(),
            started(),
            succeeded(),
            connected(1),
            lifecycle(2, "ready"),
            requested(2, STOP),
            started(2, STOP),
            succeeded(2, STOP),
        ],
        S.STOPPED,
        None,
    ),
    "start, stop, start": (
        [
            requested(),
            succeeded(made=agents("one")),
            connected(1, "one"),
            requested(2, STOP),
            succeeded(2, STOP),
            requested(3),
            started(3),
            succeeded(3, made=agents("two")),
            connected(1, "two", 3),
            lifecycle(2, "ready", "two", 3),
        ],
        S.READY,
        "connected",
    ),
    "delete": (
        [
            requested(),
            succeeded(),
            connected(1),
            requested(2, DELETE),
            started(2, DELETE),
            succeeded(2, DELETE),
            deleted(),
        ],
        S.NONE,
        None,
    ),
    "failing build": (
        [requested(), started(), failed(code="INSUFFICIENT_QUOTA"), connected(1)],
        S.BUILD_FAILED,
        None,
    ),
    "canceled build": ([requested(), started(), canceled()], S.BUILD_CANCELED, None),
    "no agents": ([requested(), started(), succeeded(made=())], S.READY, None),
    "several agents": (
        [
            requested(),
            succeeded(made=MANY),
            connected(1, "zed"),
            lifecycle(2, "start_error", "zed"),
            connected(1, "b-Coderd-Chat"),
            lifecycle(2, "ready", "b-Coderd-Chat"),
            connected(1, "kid-coderd-chat"),
        ],
        S.READY,
        "connected",
    ),
    "made elsewhere": (
        [
            started(7, workspace_name="w", owner_name="ann", template_id=uid("template")),
            succeeded(7),
            connected(1, number=7),
            lifecycle(2, "starting", number=7),
            lifecycle(3, "ready", number=7),
        ],
        S.READY,
        "connected",
    ),
    "made elsewhere, several builds": (
        [
            started(1, workspace_name="w", owner_name="ann"),
            succeeded(1),
            connected(1),
            started(2, STOP),
            succeeded(2, STOP),
            succeeded(3, made=agents("two")),
            connected(1, "two", 3),
        ],
        S.SCRIPTS_RUNNING,
        "connected",
    ),
    "made and deleted elsewhere": (
        [started(1), succeeded(1), connected(1), started(2, DELETE), succeeded(2, DELETE)],
        S.NONE,
        None,
    ),
    "a stop that fails": (
        [
            requested(),
            succeeded(),
            connected(1),
            lifecycle(2, "start_error"),
            requested(2, STOP),
            started(2, STOP),
            failed(2, STOP),
        ],
        S.STOP_FAILED,
        None,
    ),
    "superseded by a start made elsewhere": (
        [requested(), started(), canceled(), started(2), succeeded(2), connected(1, number=2)],
        S.SCRIPTS_RUNNING,
        "connected",
    ),
}


OVERTAKEN: dict[str, tuple[list[Event], State, str | None]] = {
    "ready": (
        [
            deleted(),
            started(workspace="x", workspace_name="theirs", owner_name="bob"),
            succeeded(workspace="x"),
            connected(1, workspace="x"),
            lifecycle(2, "ready", workspace="x"),
        ],
        S.READY,
        "connected",
    ),
    "stopped": (
        [
            deleted(),
            succeeded(workspace="x"),
            connected(1, workspace="x"),
            started(2, STOP, "x"),
            succeeded(2, STOP, workspace="x"),
        ],
        S.STOPPED,
        None,
    ),
    "a stop that fails": (
        [
            deleted(),
            succeeded(workspace="x"),
            connected(1, workspace="x"),
            started(2, STOP, "x"),
            failed(2, STOP, workspace="x"),
        ],
        S.STOP_FAILED,
        None,
    ),
    "gone too": (
        [deleted(), started(workspace="x"), connected(1, workspace="x"), deleted("x")],
        S.NONE,
        None,
    ),
}
"""The chat's workspace is deleted, and another is made elsewhere, reported before or after that."""


def possible(order: tuple[Event, ...]) -> bool:
    """Return whether facts can arrive in this order.

    Requests of workspaced arrive in the order of their numbers, and before the facts of their
    builds. No provisioner reports on a requested workspace before its first request.
    """
    asked = [fact.data for fact in order if isinstance(fact.data, BuildRequested)]
    if [request.build_number for request in asked] != sorted(r.build_number for r in asked):
        return False
    at = {f.data.build_id: n for n, f in enumerate(order) if isinstance(f.data, BuildRequested)}
    first = min(at.values(), default=-1)
    return all(
        max(first, at.get(fact.data.build_id, -1)) <= n
        for n, fact in enumerate(order)
        if isinstance(fact.data, ProvisionerFact)
    )


def orders(run: list[Event]) -> Iterator[tuple[Event, ...]]:
    """Yield orders in which the facts of a run may arrive: all, or a selection of a long run's."""
    if len(run) <= 6:
        yield from filter(possible, permutations(run))
        return
    chance = Random(len(run))

    def shuffled() -> Iterator[tuple[Event, ...]]:
        while True:
            yield tuple(chance.sample(run, len(run)))

    yield tuple(run)
    yield from islice(filter(possible, shuffled()), MOST)


def with_repeats(order: tuple[Event, ...], chance: Random) -> list[Event]:
    """Return `order` with some facts delivered again later, except workspaced's own requests."""
    seen = list[Event]()
    for fact in order:
        seen.append(fact)
        again = chance.choice(seen)
        if chance.random() < 0.4 and not isinstance(again.data, BuildRequested):
            seen.append(again)
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_the_facts_of_a_run_lead_to_the_same_snapshot_in_every_order(name: str) -> None:
    run, state, status = RUNS[name]
    end = chat(*run)
    assert (end.state, end.agent_status()) == (state, status)
    for order in orders(run):
        assert place(chat(*order)) == place(end), [fact.data for fact in order]


@pytest.mark.parametrize("name", OVERTAKEN)
@pytest.mark.parametrize("own", [[requested()], [requested(), succeeded(), connected(1)]])
def test_the_order_of_a_new_workspace_and_the_deletion_of_the_old_one_does_not_matter(
    own: list[Event], name: str
) -> None:
    facts, state, status = OVERTAKEN[name]
    end = chat(*own, *facts)
    assert (end.state, end.agent_status()) == (state, status)
    for order in permutations(facts):
        assert place(chat(*own, *order)) == place(end), [fact.data for fact in order]


@pytest.mark.parametrize("name", RUNS)
def test_a_repeat_moves_nothing(name: str) -> None:
    """The store recognizes repeats by identity; folding a repeat would have no effect either."""
    run, _, _ = RUNS[name]
    end, chance = place(chat(*run)), Random(name)
    for order in islice(orders(run), 200):
        assert place(chat(*with_repeats(order, chance))) == end


@pytest.mark.parametrize("name", RUNS)
def test_folding_a_fact_twice_changes_nothing(name: str) -> None:
    run, _, _ = RUNS[name]
    end = chat(*run)
    for fact in run:
        if not isinstance(fact.data, BuildRequested):
            assert apply(end, fact).outcome in ("kept", "stale", "ignored", "foreign")
            assert state_changed(apply(end, fact).chat) == state_changed(end)


def test_early_facts_take_effect_with_the_build_and_each_state_on_the_way_is_published() -> None:
    early = [lifecycle(2, "ready"), connected(1), requested(), succeeded()]

    assert path(*early) == ["building", "agent_connecting", "scripts_running", "ready"]


def test_the_end_of_an_unannounced_build_also_publishes_its_beginning() -> None:
    stopped = succeeded(2, STOP)

    assert path(requested(), stopped) == ["building", "stopping", "stopped"]


def test_facts_of_agents_of_an_unknown_workspace_are_kept() -> None:
    early = [connected(1, number=5), lifecycle(2, "start_error", number=5)]

    end = chat(*early, succeeded(5))

    assert end.state is S.SCRIPTS_FAILED


def test_a_lost_agent_is_connected_again_with_any_next_fact() -> None:
    there = chat(requested(), succeeded(), connected(1), lifecycle(2, "ready"))
    gone = apply(there, lost()).chat
    assert (there.agent_status(), gone.agent_status()) == ("connected", "disconnected")

    for fact in (connected(3), lifecycle(3, "created"), lifecycle(3, "shutting_down")):
        assert apply(gone, fact).chat.agent_status() == "connected"
    assert apply(gone, disconnected(3)).chat.agent_status() == "disconnected"


@pytest.mark.parametrize("sequence", [0, 4, 5, 6, 7])
def test_a_lost_agent_is_connected_again_with_any_next_sequence(sequence: int) -> None:
    gone = chat(requested(), succeeded(), connected(5), lifecycle(6, "ready"), lost())
    assert gone.agent_status() == "disconnected"

    for fact in (
        connected(sequence),
        lifecycle(sequence, "created"),
        lifecycle(sequence, "starting"),
        lifecycle(sequence, "ready"),
    ):
        back = apply(gone, fact)

        assert back.outcome == "changed"
        assert back.chat.agent_status() == "connected"
        assert back.chat.state is S.READY


def test_a_lost_agent_that_disconnects_with_a_lower_sequence_returns_with_its_next_fact() -> None:
    gone = chat(requested(), succeeded(), connected(5), lifecycle(6, "ready"), lost())

    left = apply(gone, disconnected(2))

    assert left.outcome == "stale"
    assert left.chat.agent_status() == "disconnected"
    assert apply(left.chat, connected(3)).chat.agent_status() == "connected"


BEFORE = [requested(), succeeded(), connected(50), lifecycle(51, "ready")]
RESTORED: dict[str, tuple[list[Event], str, str]] = {
    "connects": ([connected(1)], "connected", "ready"),
    "runs its scripts again": (
        [connected(1), lifecycle(2, "starting"), lifecycle(3, "start_error")],
        "connected",
        "start_error",
    ),
    "leaves": (
        [connected(1), lifecycle(2, "shutting_down"), lifecycle(3, "off"), disconnected(4)],
        "disconnected",
        "off",
    ),
    "reconnects": (
        [connected(1), lifecycle(2, "starting"), disconnected(3), connected(4)],
        "connected",
        "starting",
    ),
}
"""Reports of a lost agent whose sequences start again lower, and what is then shown of it."""


@pytest.mark.parametrize("name", RESTORED)
def test_after_a_loss_sequences_start_again_and_order_does_not_matter(name: str) -> None:
    facts, status, shown = RESTORED[name]
    for order in permutations(facts):
        end = chat(*BEFORE, lost(), *order)

        assert (end.agent_status(), end.agent_lifecycle()) == (status, shown)
        assert place(end) == place(chat(*BEFORE, lost(), *facts))


def test_scripts_that_run_again_after_a_loss_end_in_ready() -> None:
    failed_before = [requested(), succeeded(), connected(50), lifecycle(51, "start_error"), lost()]

    assert chat(*failed_before, connected(1), lifecycle(2, "ready")).state is S.READY
    assert chat(*failed_before, lifecycle(2, "ready"), connected(1)).state is S.READY


def test_an_agent_may_be_lost_and_restored_more_than_once() -> None:
    again = [lost(), connected(7), lifecycle(8, "ready"), lost(), connected(2)]

    end = chat(*BEFORE, *again)

    assert (end.state, end.agent_status()) == (S.READY, "connected")
    assert chat(*BEFORE, *again, lifecycle(3, "off")).agent_lifecycle() == "off"


def test_an_old_fact_has_no_effect_after_an_agent_returned_with_a_higher_sequence() -> None:
    """A paused worker may apply facts long after another worker noticed the loss."""
    back = chat(*BEFORE, lost(), connected(60))

    for late_one in (lifecycle(49, "starting"), disconnected(48), connected(47)):
        assert state_changed(apply(back, late_one).chat) == state_changed(back)


@pytest.mark.parametrize("name", RUNS)
def test_an_undone_loss_leaves_no_trace(name: str) -> None:
    run, _, _ = RUNS[name]
    said = [fact.data for fact in run if isinstance(fact.data, AgentFact)]
    if not said:
        return
    agent = said[-1].agent_id
    by = {"workspace_id": said[-1].workspace_id, "build_id": said[-1].build_id, "agent_id": agent}
    gone = event(AgentDisconnected(**by))
    again = event(AgentConnected(**by, sequence=9))
    for order in islice(orders(run), 100):
        spoke = [n for n, f in enumerate(order) if getattr(f.data, "agent_id", None) == agent]
        for where in range(spoke[-1] + 1, len(order) + 1):
            with_loss = [*order[:where], gone, *order[where:], again]

            assert place(chat(*with_loss)) == place(chat(*run, again))


def test_undoing_a_loss_restores_the_reports_of_the_agent() -> None:
    """A lifecycle `created` undoes the loss, but does not connect a disconnected agent."""
    left = [requested(), succeeded(), connected(1), disconnected(2)]

    assert chat(*left, lost(), lifecycle(3, "created")).agent_status() == "disconnected"


def test_a_lower_sequence_never_overrides_a_higher_one() -> None:
    ready = chat(requested(), succeeded(), connected(5), lifecycle(6, "ready"))

    for fact in (disconnected(4), lifecycle(5, "start_error"), lifecycle(6, "off")):
        assert state_changed(apply(ready, fact).chat) == state_changed(ready)


def test_a_repeated_startup_overrides_the_outcome_of_the_first() -> None:
    """The contract's two rules contradict each other here; see the docstring of this module."""
    built = [requested(), succeeded(), connected(1)]
    first, again = lifecycle(3, "ready"), lifecycle(4, "start_error")

    assert chat(*built, first, again).state is S.READY
    assert chat(*built, again, first).state is S.SCRIPTS_FAILED


def test_the_first_stored_terminal_fact_of_a_build_counts() -> None:
    """An exception to 'order never matters'."""
    assert chat(requested(), succeeded(), failed()).state is S.AGENT_CONNECTING
    assert chat(requested(), failed(), succeeded()).state is S.BUILD_FAILED


def test_of_two_builds_with_the_same_number_the_first_one_is_followed() -> None:
    followed = chat(requested(), started(2, build="left"), succeeded(2, STOP, build="right"))

    assert followed.state is S.BUILDING
    assert followed.build is not None
    assert followed.build.id == uid("left")


def test_a_late_terminal_fact_moves_a_chat_whose_build_timed_out() -> None:
    assert apply(in_state(S.BUILD_TIMED_OUT), succeeded()).chat.state is S.AGENT_CONNECTING
    assert apply(in_state(S.BUILD_TIMED_OUT), failed()).chat.state is S.BUILD_FAILED
    assert apply(in_state(S.STOP_TIMED_OUT), succeeded(2, STOP)).chat.state is S.STOPPED
    assert apply(in_state(S.STOP_TIMED_OUT), canceled(2, STOP)).chat.state is S.STOP_CANCELED


def test_a_limit_that_passes_before_the_facts_does_not_change_the_final_state() -> None:
    in_time = chat(requested(), succeeded(), connected(1), lifecycle(2, "ready"))
    for state, rest in (
        (S.BUILD_TIMED_OUT, [lifecycle(2, "ready"), connected(1), succeeded()]),
        (S.AGENT_NOT_READY, [lifecycle(2, "ready"), connected(1)]),
        (S.SCRIPTS_TIMED_OUT, [lifecycle(2, "ready")]),
    ):
        assert place(chat(*rest, of=in_state(state))) == place(in_time)


def test_many_other_agents_never_displace_the_chosen_one() -> None:
    there = [requested(), succeeded(), connected(1)]
    crowd = [connected(1, f"early {n}", number=9) for n in range(MAX_AGENTS + 72)]

    end = chat(*there, *crowd, disconnected(2))

    assert end.agent_status() == "disconnected"
    assert len(end.agents) <= MAX_AGENTS


def test_a_stop_build_made_elsewhere_binds_its_workspace_too() -> None:
    assert path(started(4, STOP), succeeded(4, STOP)) == ["stopping", "stopped"]


def test_facts_of_a_replaced_workspace_move_nothing() -> None:
    new = chat(requested(), failed(), requested(1, START, "new"))
    for fact in (succeeded(), started(2, STOP), connected(1), deleted()):
        decision = apply(new, fact)

        assert decision.outcome == "foreign"
        assert place(decision.chat)["workspace"] == place(new)["workspace"]


def test_another_workspace_moves_nothing_while_the_chat_has_one() -> None:
    """Then the chat binds it at once, whether it was reported before or after the deletion."""
    other = started(1, workspace="x")

    waiting = chat(requested(), other)
    assert waiting.current is not None
    assert waiting.current.id == uid("w")
    for end in (apply(waiting, deleted()).chat, chat(requested(), deleted(), other)):
        assert end.state is S.BUILDING
        assert end.current is not None
        assert end.current.id == uid("x")


def test_of_several_reported_workspaces_the_one_with_the_lowest_id_becomes_current() -> None:
    """In state `none` the chat binds the first one that is reported, without waiting for others."""
    others = [started(1, workspace=name) for name in "xyz"]
    lowest = min(uid(name) for name in "xyz")

    for order in permutations(others):
        end = chat(requested(), *order, deleted())
        assert end.current is not None
        assert end.current.id == lowest
    first = chat(requested(), deleted(), *others)
    assert first.current is not None
    assert first.current.id == uid("x")


def test_each_state_on_the_way_from_one_workspace_to_the_next_is_published() -> None:
    early = [lifecycle(2, "ready", workspace="x"), succeeded(workspace="x")]
    early.append(connected(1, workspace="x"))
    ways = [deleted()], [requested(2, DELETE), succeeded(2, DELETE)]

    for way, before in zip(ways, ([], ["stopping"]), strict=True):
        end = ["none", "building", "agent_connecting", "scripts_running", "ready"]
        assert path(requested(), *early, *way) == ["building", *before, *end]


def test_agents_of_other_workspaces_never_displace_those_of_the_current_one() -> None:
    mine = [connected(1, f"mine {n}", number=2) for n in range(MAX_AGENTS - 1)]
    there = chat(requested(), succeeded(), connected(1), *mine)
    theirs = [connected(1, f"theirs {n}", workspace="x") for n in range(9)]

    crowded = chat(*theirs, of=there)

    assert crowded.agents == there.agents
    few = chat(*theirs, *mine[:-1], of=chat(requested(), succeeded(), connected(1)))
    assert {facts.id for facts in few.agents} >= {uid("main"), uid("theirs 8")}
    assert len(few.agents) == MAX_AGENTS


def test_equal_agent_ids_in_two_workspaces_are_two_agents() -> None:
    there = chat(requested(), succeeded(), connected(5), lifecycle(6, "starting"))

    after = apply(there, lifecycle(7, "ready", workspace="x"))

    assert after.outcome == "foreign"
    assert state_changed(after.chat) == state_changed(there)
    heard = after.chat.agent_facts_of_any_workspace(uid("main"))
    assert heard is not None
    assert heard.workspace_id == uid("w")


def test_an_agent_of_a_workspace_that_may_become_current_can_be_lost() -> None:
    early = [requested(), succeeded(workspace="x"), connected(1, workspace="x")]
    heard = chat(*early).agent_facts_of_any_workspace(uid("main"))
    assert heard is not None
    assert heard.workspace_id == uid("x")

    end = chat(*early, disconnected(None, workspace="x"), deleted())

    assert end.agent_status() == "disconnected"


def test_facts_of_agents_of_previous_and_deleted_workspaces_are_not_kept() -> None:
    replaced = chat(requested(), succeeded(), connected(1), requested(1, START, "v"))
    other = chat(connected(1, workspace="x"), of=replaced)

    assert replaced.agents == apply(replaced, connected(7)).chat.agents == ()
    assert len(other.agents) == 1
    for gone in (deleted("x"), succeeded(2, DELETE, workspace="x")):
        after = apply(other, gone).chat
        assert after.agents == apply(after, connected(8, workspace="x")).chat.agents == ()


def test_an_owner_that_becomes_known_late_is_published() -> None:
    bound = chat(started(1))
    assert state_changed(bound)["workspace"]["owner_name"] is None

    told = apply(bound, asked("list_templates")).chat

    assert state_changed(told)["workspace"]["owner_name"] == "ann"
    assert told.version == bound.version + 1


def test_a_new_chat_has_state_none_and_version_0() -> None:
    data = state_changed(Chat(chat_id=CHAT))

    assert (data["state"], data["version"], data["cause"]) == ("none", 0, None)


def test_a_build_made_elsewhere_was_started_when_it_was_first_heard_of() -> None:
    report = started().model_copy(
        update={"time": NOW - timedelta(days=1)}
    )  # its sender's clock is wrong

    there = apply(Chat(chat_id=CHAT), report).chat

    assert there.build is not None
    assert there.build.started_at == NOW
