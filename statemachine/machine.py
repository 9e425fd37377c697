"""decide: what an event does to a chat. Pure, synchronous, total.

An event is folded into what is known (`folding`), then the machine advances as far as the facts
allow (`pending`), one table row and one published version at a time. Because moves follow from facts
and not from messages, the order in which the facts came does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final

from transitions import Machine

from statemachine import fold, previous_workspaces
from statemachine.agents import Unselectable, choose
from statemachine.chat import Build, Cause, Chat, Ending, Failure, Limits
from statemachine.events import Event, Lifecycle, Transition
from statemachine.fold import Unmoved
from statemachine.pool_scope import foreign_pool
from statemachine.states import STATE_INFO, Reason, State
from statemachine.table import LEGAL, TABLE, Trigger
from statemachine.views import visible


@dataclass(frozen=True, slots=True)
class Moved:
    """The state or what is shown with it changed: one published version a step."""

    workspace: Chat
    steps: tuple[Chat, ...]

    @property
    def outcome(self) -> str:
        """`moved` when the state changed, else `changed`."""
        return "moved" if any(s.state is not s.previous_state for s in self.steps) else "changed"


@dataclass(frozen=True, slots=True)
class Parked:
    """Known now, and nothing to show for it yet: it came early, or matters only with another."""

    workspace: Chat
    outcome: Final = "kept"


@dataclass(frozen=True, slots=True)
class Ignored:
    """It has no say. `workspace` may still know it."""

    workspace: Chat
    reason: Unmoved

    @property
    def outcome(self) -> str:
        """The reason, as the log names it."""
        return self.reason


Decision = Moved | Parked | Ignored


class _Cursor:
    """What the engine moves; thrown away after the move."""

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

    The engine is asked once for each pair: the table doesn't change.
    """
    if (trigger, state) not in LEGAL:
        return None
    cursor = _Cursor(state)
    _ENGINE.events[trigger.value].trigger(cursor)
    return cursor.state


def cause_of(event: Event | Cause) -> Cause:
    """Return how an event is named where it made a version."""
    return Cause(source=event.source, id=event.id, type=event.type)


def decide(
    workspace: Chat,
    event: Event,
    at: datetime,
    limits: Limits,
    because: Event | Cause | None = None,
) -> Decision:
    """Return what `event` does to `workspace`. `at` is when it is decided; limits count from there.

    `because`: the event from the bus that `event` follows from, when it is one of our own.
    """
    if foreign_pool(workspace, event) is not None:
        return Ignored(workspace, Unmoved.FOREIGN)
    folded = fold.fold(workspace, event, at)
    known = folded.workspace
    cause = cause_of(because or event)
    steps = list(_steps(known, folded.trigger, at, limits, cause))
    if steps and (joined := fold.joined(steps[-1], workspace)) is not None:
        steps += _steps(joined.workspace, joined.trigger, at, limits, cause)
    known = steps[-1] if steps else known
    if not steps and (folded.anew or visible(known) != visible(workspace)):
        known = known.model_copy(
            update={
                "version": known.version + 1,
                "previous_state": known.state,
                "cause": cause,
                "changed_at": at,
            }
        )
        steps.append(known)
    if steps:
        return Moved(known, tuple(steps))
    if folded.unmoved is not None:
        return Ignored(known, folded.unmoved)
    if folded.trigger is not None:
        return Ignored(known, Unmoved.STALE)
    return Parked(known)


def _steps(
    known: Chat, trigger: Trigger | None, at: datetime, limits: Limits, cause: Cause
) -> Iterator[Chat]:
    """Yield the snapshot after each move: the trigger's, then those that the facts amount to."""
    if trigger is not None and (state := next_state(known.state, trigger)) is not None:
        known = _enter(known, state, trigger, at, limits, cause)
        yield known
    while (move := _due(known)) is not None:
        known = _enter(known, *move, at, limits, cause)
        yield known


def pending(workspace: Chat) -> Iterator[Trigger]:
    """Yield what the facts amount to, in the order in which they follow from each other."""
    if workspace.build is not None and workspace.build.outcome is not None:
        yield _ended(workspace.build)
    if workspace.chosen is None or (facts := workspace.facts_of(workspace.chosen.id)) is None:
        return
    if facts.seen:
        yield Trigger.AGENT_CONNECTED
    if facts.begun:
        yield Trigger.AGENT_STARTED
    if facts.startup is Lifecycle.READY:
        yield Trigger.SCRIPTS_READY
    elif facts.start_ended:
        yield Trigger.SCRIPTS_FAILED


def _ended(build: Build) -> Trigger:
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
    if isinstance(choose(outcome.agents), Unselectable):
        return Trigger.UNSELECTABLE
    return Trigger.BUILT


def _due(workspace: Chat) -> tuple[State, Trigger] | None:
    for trigger in pending(workspace):
        if (state := next_state(workspace.state, trigger)) is not None:
            return state, trigger
    return None


def _enter(
    workspace: Chat,
    state: State,
    trigger: Trigger,
    at: datetime,
    limits: Limits,
    cause: Cause,
) -> Chat:
    """Return the snapshot in `state`: a new version with all that the state brings."""
    about = STATE_INFO[state]
    if trigger is Trigger.BUILT and workspace.build is not None and workspace.build.outcome:
        chosen = choose(workspace.build.outcome.agents)
        workspace = workspace.model_copy(update={"chosen": chosen})
    failure = (
        Failure(
            reason=about.reason,
            message=_message(workspace, about.reason),
            error_code=_error_code(workspace, about.reason),
        )
        if about.reason is not None
        else None
    )
    entered = workspace.model_copy(
        update={
            "state": state,
            "previous_state": workspace.state,
            "version": workspace.version + 1,
            "failure": failure,
            "deadline": at + limits.of(about.limit) if about.limit else None,
            "generation": workspace.generation + (1 if about.limit else 0),
            "cause": cause,
            "changed_at": at,
        }
    )
    return entered if about.bound else previous_workspaces.left(entered, at, deleted=True)


def _error_code(workspace: Chat, reason: Reason) -> str | None:
    outcome = workspace.build.outcome if workspace.build else None
    return outcome.error_code if outcome and reason is Reason.BUILD_FAILED else None


def _of_scripts(workspace: Chat) -> str:
    """Say how the startup scripts failed, and where their output is."""
    lifecycle = workspace.agent_lifecycle()
    how = (
        "did not end within their own time limit"
        if lifecycle is Lifecycle.START_TIMEOUT
        else "failed"
    )
    name = f" of agent '{workspace.chosen.name}'" if workspace.chosen else ""
    return f"the startup scripts{name} {how}; the log of the build shows their output"


def _message(workspace: Chat, reason: Reason) -> str:
    """Say what is wrong, in words that a chat's model and its user can act on."""
    build = workspace.build
    what = f"the {build.transition} build" if build else "the build"
    outcome = build.outcome if build else None
    match reason:
        case Reason.BUILD_FAILED:
            return (outcome.error if outcome else None) or f"{what} failed"
        case Reason.BUILD_CANCELED:
            return f"{what} was canceled"
        case Reason.BUILD_TIMEOUT:
            if build and not build.taken:
                pool = f" of pool '{build.template.pool}'" if build.template else ""
                return f"{what} did not begin in time: no provisioner{pool} took it"
            return f"{what} did not end in time"
        case Reason.SELECTION_ERROR:
            choice = choose(outcome.agents) if outcome and outcome.agents else None
            return choice.message if isinstance(choice, Unselectable) else "no agent can be chosen"
        case Reason.AGENT_NOT_READY:
            name = f" '{workspace.chosen.name}'" if workspace.chosen else ""
            return f"the workspace was built, but its agent{name} did not connect in time"
        case Reason.STARTUP_SCRIPTS_FAILED:
            return _of_scripts(workspace)
        case Reason.STARTUP_SCRIPTS_TIMEOUT:
            return "the startup scripts did not end in time"
