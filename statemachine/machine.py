"""`decide`: the pure function that applies one event to a chat. It accepts every event in every state.

THE THEORY

A chat hears of its workspace from parties that know nothing of each other: a provisioner reports builds, agents
report connections and startup scripts, timers fire, and all of it may be delayed, repeated or reordered. A state
machine that is moved by messages would have to say what each message means in each state, for each order. This one
is not moved by messages. It works in three steps:

1. Facts are folded. `fold.fold` puts an event into the snapshot (`chat.Chat`) without looking at the state.
   Each field follows the fact that is newest by the sender's own numbering: a workspace follows its build with
   the highest number, and each field of an agent follows the report with the highest sequence that concerns it. A
   fact that comes early is kept; a fact that is older than what is known adds what is still missing. So the same
   facts fold to the same snapshot, whatever their order.

2. Triggers follow from the facts. `pending` looks only at the folded facts and says what they amount to now: the
   build succeeded with agents (`built`), the agent has connected, its scripts have finished, and so on. A trigger
   is therefore not an event. The same `build_succeeded` is `built`, `built_without_agents`, `unselectable`,
   `stopped` or `deleted`, depending on the build and its agents.

3. The table moves. `table.TABLE` lists every legal move: from these states, on this trigger, to that state.
   `decide` takes moves for as long as a pending trigger has a row for the present state. Each move is a version that
   is published. A trigger without a row is not an error: the chat has passed that move, or has not reached it yet.

Why order cannot matter: after each event the chat is in the state that the facts lead to, and the facts are the
same in the end. An agent that connects before `build_succeeded` is stored is remembered; when the build
ends, `pending` yields `built` and then `agent_connected`, and the chat takes both moves at once. tests/unit
checks this with permutations of whole stories (test_order.py, test_properties.py).

Some moves don't follow from the collected facts, but from one event at its time. Their trigger comes from `fold`
itself and is tried first: a newer build is followed (`start_followed`, `stop_followed`), the workspace is
gone (`workspace_deleted`), a limit has passed (`deadline_passed`), a call begins a new wait (`wait_resumed`).
The first three are facts too, and win over everything older. The last two are decisions of workspaced's own, made
on the chat's newest snapshot, so they have one order; each applies only to the deadline that it names, or in the states
that the table gives it.

The exceptions, where order does matter:
- Of two terminal facts of one build, the first one stored counts.
- The next report of an agent whose loss workers noticed undoes the loss, even with a lower sequence, because the
  agent may have been restored from a copy. From that report on, sequences are compared again.
- A deadline that passes before the fact that would have met it makes the state `failed`. The late fact still
  moves the chat on, but both versions were published.
- Without a workspace, a chat binds the first workspace that a provisioner reports for it.

Facts are never refused: they have happened. A fact without an effect is logged with the reason (`Ignored`).
Requests may be refused; that is what `tool_rules` does, and it never moves the chat except through events of our
own (`build_requested`, `wait_resumed`), which are decided here like all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import cache
from typing import ClassVar, Final

from msgspec import Struct
from msgspec.structs import replace
from transitions import Machine

from statemachine import fold, lifetimes
from statemachine.chat import Cause, Chat, Failure, Limits, never_present
from statemachine.events import Event, Lifecycle, Transition
from statemachine.fold import Unmoved
from statemachine.states import STATE_INFO, FailureReason, Limit, State
from statemachine.table import ADDED, LEGAL, TABLE, Trigger
from statemachine.views import visible, visible_earlier
from statemachine.workspace import Build, Ending, Unselectable, choose_agent


class Moved(Struct, frozen=True):
    """The state, or another published property, changed. Each step is one published version."""

    chat: Chat
    steps: tuple[Chat, ...]

    @property
    def outcome(self) -> str:
        """`moved` when the state changed as messages name it, else `changed`."""
        return "moved" if any(map(enters_state, self.steps)) else "changed"


def enters_state(step: Chat) -> bool:
    """Return whether a step changed the state as messages name it, with the reason of `failed`."""
    return STATE_INFO[step.state].shown != STATE_INFO[step.previous_state].shown


class Kept(Struct, frozen=True):
    """The snapshot keeps the event, but nothing published changed: the event waits for other facts."""

    chat: Chat
    outcome: ClassVar = "kept"


class Ignored(Struct, frozen=True):
    """The event has no effect on what is published. The snapshot may hold it nevertheless."""

    chat: Chat
    reason: Unmoved

    @property
    def outcome(self) -> str:
        """The reason, as the event log names it."""
        return self.reason


Decision = Moved | Kept | Ignored


class _Cursor:
    """The model that the engine moves. It is discarded after each move."""

    __slots__ = ("state",)

    def __init__(self, state: State) -> None:
        self.state = state


_ENGINE: Final = Machine(
    model=None,
    states=State,
    transitions=[
        {"trigger": row.trigger.value, "source": list(row.sources), "dest": row.dest}
        for row in TABLE
    ],
    initial=State.NONE,
    auto_transitions=False,
)


@cache
def next_state(state: State, trigger: Trigger) -> State | None:
    """Return where `trigger` leads from `state`, or None when the table has no such row.

    The engine is asked once for each pair, because the table does not change.
    """
    if (trigger, state) not in LEGAL:
        return None
    cursor = _Cursor(state)
    _ENGINE.events[trigger.value].trigger(cursor)
    return cursor.state


def cause_of(event: Event | Cause) -> Cause:
    """Return the event as the `cause` of a version."""
    return Cause(source=event.source, id=event.id, type=event.type)


def decide(
    chat: Chat,
    event: Event,
    at: datetime,
    limits: Limits,
    because: Event | Cause | None = None,
    *,
    earlier: bool = False,
) -> Decision:
    """Return what `event` does to `chat`. `at` is the time of the decision; limits count from it.

    `because`: the event from the bus that led to `event`, if `event` is one of workspaced's own.
    `earlier`: decide as earlier versions did, which showed less and had fewer moves, to replay their logs.
    """
    seen = visible_earlier if earlier else visible
    without = ADDED if earlier else frozenset[tuple[Trigger, State]]()
    if foreign_pool(chat, event) is not None:
        return Ignored(chat, Unmoved.FOREIGN)
    folded = fold.fold(chat, event, at)
    known = _with_present_message(folded.chat)
    cause = cause_of(because or event)
    steps = list(_steps(known, folded.trigger, at, limits, cause, without))
    if steps and (bound := fold.bind_successor(steps[-1], chat)) is not None:
        steps += _steps(bound.chat, bound.trigger, at, limits, cause, without)
    known = steps[-1] if steps else known
    if not steps and (folded.republish or seen(known) != seen(chat)):
        known = replace(
            known,
            version=known.version + 1,
            previous_state=known.state,
            cause=cause,
            changed_at=at,
        )
        steps.append(known)
    if steps:
        return Moved(known, tuple(steps))
    if folded.unmoved is not None:
        return Ignored(known, folded.unmoved)
    if folded.trigger is not None:
        return Ignored(known, Unmoved.STALE)
    return Kept(known)


def foreign_pool(chat: Chat, event: Event) -> str | None:
    """Return the pool of the build that `event` is about, if its sender is bound to another pool; else None.

    A build made elsewhere has no pool: every provisioner may report on it.
    """
    if event.pool is None:
        return None
    pool = _pool_of(
        chat, getattr(event.data, "workspace_id", None), getattr(event.data, "build_id", None)
    )
    return None if pool == event.pool else pool


def _pool_of(chat: Chat, workspace_id: str | None, build_id: str | None) -> str | None:
    """Return the pool of the build if it is known, otherwise that of the workspace's newest one."""
    if workspace_id is None:
        return None
    current = chat.current
    if current is not None and current.id == workspace_id:
        record = current
    elif (previous := chat.previous_workspace(workspace_id)) is not None:
        record = previous
    else:
        return None
    pools = {
        build.id: build.template.pool
        for build in (record.last_start, record.build)
        if build is not None and build.template is not None
    }
    return pools.get(build_id or "") or next(reversed(pools.values()), None)


def _steps(
    known: Chat,
    trigger: Trigger | None,
    at: datetime,
    limits: Limits,
    cause: Cause,
    without: AbstractSet[tuple[Trigger, State]],
) -> Iterator[Chat]:
    """Yield the snapshot after each move: first that of `trigger`, then those of the pending triggers."""
    if trigger is not None and (state := next_state(known.state, trigger)) is not None:
        known = _enter(known, state, trigger, at, limits, cause)
        yield known
    while (move := _next_move(known, without)) is not None:
        known = _enter(known, *move, at, limits, cause)
        yield known


_ENDINGS: Final = frozenset(
    {
        *(Trigger.BUILD_CANCELED, Trigger.BUILD_FAILED, Trigger.STOPPED, Trigger.DELETED),
        *(Trigger.BUILT_WITHOUT_AGENTS, Trigger.UNSELECTABLE, Trigger.BUILT),
    }
)
_ENDED_BY_A_BUILD: Final = frozenset(state for trigger, state in LEGAL if trigger in _ENDINGS)
"""The states that the end of a build can end."""


def pending(chat: Chat) -> Iterator[Trigger]:
    """Yield the triggers that follow from the facts, in the order in which a workspace passes through them.

    The end of a build is left out where no row of the table has it.
    """
    if (
        chat.state in _ENDED_BY_A_BUILD
        and chat.build is not None
        and chat.build.outcome is not None
    ):
        yield _ending_trigger(chat.build)
    if chat.chosen is None or (facts := chat.agent_facts(chat.chosen.id)) is None:
        return
    if facts.ever_connected:
        yield Trigger.AGENT_CONNECTED
    if facts.ever_started:
        yield Trigger.AGENT_STARTED
    if facts.exited_unseen:
        yield Trigger.AGENT_EXITED
    if facts.startup is Lifecycle.READY:
        yield Trigger.SCRIPTS_READY
    elif facts.start_ended:
        yield Trigger.SCRIPTS_FAILED


def _ending_trigger(build: Build) -> Trigger:
    outcome = build.outcome
    if outcome is None or outcome.ending is Ending.CANCELED:
        return Trigger.BUILD_CANCELED
    if outcome.ending is Ending.FAILED:
        return Trigger.BUILD_FAILED
    if build.transition is Transition.STOP:
        return Trigger.STOPPED
    if build.transition is Transition.DELETE:
        return Trigger.DELETED
    if not outcome.agents:
        return Trigger.BUILT_WITHOUT_AGENTS
    if isinstance(choose_agent(outcome.agents), Unselectable):
        return Trigger.UNSELECTABLE
    return Trigger.BUILT


def _next_move(
    chat: Chat, without: AbstractSet[tuple[Trigger, State]]
) -> tuple[State, Trigger] | None:
    for trigger in pending(chat):
        if (trigger, chat.state) in without:
            continue
        if (state := next_state(chat.state, trigger)) is not None:
            return state, trigger
    return None


def _enter(
    chat: Chat,
    state: State,
    trigger: Trigger,
    at: datetime,
    limits: Limits,
    cause: Cause,
) -> Chat:
    """Return the snapshot after the move to `state`: a new version, with the new failure and deadline."""
    info = STATE_INFO[state]
    if trigger is Trigger.BUILT:
        chat = _with_chosen_agent(chat)
    failure = (
        Failure(
            reason=info.reason,
            message=_message(chat, info.reason),
            error_code=_error_code(chat, info.reason),
        )
        if info.reason is not None
        else None
    )
    deadline = at + limits.of(info.limit) if info.limit else None
    if deadline and chat.deadline and info.limit is Limit.CANCEL:
        deadline = min(deadline, chat.deadline)  # a cancel never puts a deadline back
    entered = replace(
        chat,
        state=state,
        previous_state=chat.state,
        version=chat.version + 1,
        failure=failure,
        deadline=deadline,
        generation=chat.generation + (1 if info.limit else 0),
        cause=cause,
        changed_at=at,
    )
    if not info.bound:
        return fold.leave(entered, at, deleted=True)
    return lifetimes.entered(entered, at)


def _with_chosen_agent(chat: Chat) -> Chat:
    current, build = chat.current, chat.build
    if current is None or build is None or build.outcome is None:
        return chat
    chosen = choose_agent(build.outcome.agents)
    if isinstance(chosen, Unselectable):
        return chat
    return replace(chat, current=replace(current, chosen=chosen))


_PRESENT: Final = frozenset((FailureReason.AGENT_NOT_READY, FailureReason.BUILD_CANCELED))
"""The failures whose message follows facts that come after the failure."""


def _with_present_message(chat: Chat) -> Chat:
    """Return the chat with the message of its failure as its facts are now."""
    failure = chat.failure
    if failure is None or failure.reason not in _PRESENT:
        return chat
    message = _message(chat, failure.reason)
    return (
        chat
        if message == failure.message
        else replace(chat, failure=replace(failure, message=message))
    )


def _error_code(chat: Chat, reason: FailureReason) -> str | None:
    outcome = chat.build.outcome if chat.build else None
    return outcome.error_code if outcome and reason is FailureReason.BUILD_FAILED else None


def _scripts_failure(chat: Chat) -> str:
    """Return the message for failed startup scripts, which also says where their output is."""
    lifecycle = chat.agent_lifecycle()
    how = (
        "did not end within their own time limit"
        if lifecycle is Lifecycle.START_TIMEOUT
        else "failed"
    )
    name = f" of agent '{chat.chosen.name}'" if chat.chosen else ""
    return f"the startup scripts{name} {how}; the log of the build shows their output"


def _message(chat: Chat, reason: FailureReason) -> str:
    """Return the text of a failure, for the chat's model and its user."""
    build = chat.build
    what = f"the {build.transition} build" if build else "the build"
    outcome = build.outcome if build else None
    match reason:
        case FailureReason.BUILD_FAILED:
            return (outcome.error if outcome else None) or f"{what} failed"
        case FailureReason.BUILD_CANCELED:
            return f"{what} was canceled{_canceled_how(build)}"
        case FailureReason.BUILD_TIMEOUT:
            if build and build.begun_at is None:
                pool = f" of pool '{build.template.pool}'" if build.template else ""
                return f"{what} did not begin in time: no provisioner{pool} took it"
            return f"{what} did not end in time"
        case FailureReason.SELECTION_ERROR:
            choice = choose_agent(outcome.agents) if outcome and outcome.agents else None
            return choice.message if isinstance(choice, Unselectable) else "no agent can be chosen"
        case FailureReason.AGENT_NOT_READY:
            facts = chat.agent_facts(chat.chosen.id) if chat.chosen else None
            return never_present(chat.chosen, facts)
        case FailureReason.STARTUP_SCRIPTS_FAILED:
            return _scripts_failure(chat)
        case FailureReason.STARTUP_SCRIPTS_TIMEOUT:
            return "the startup scripts did not end in time"


def _canceled_how(build: Build | None) -> str:
    """Return how far a canceled build had come, and why it was canceled."""
    if build is None:
        return ""
    how = ""
    if build.canceled_unbegun:
        how = " before a provisioner began it"
    elif build.being_canceled:
        how = ", but no provisioner has confirmed that it ended"
    return f"{how}: {build.cancel_reason}" if build.cancel_reason else how
