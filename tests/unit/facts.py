"""Short names for facts, and chats that consist of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final
from uuid import NAMESPACE_OID, uuid5

from statemachine import answers
from statemachine.chat import Chat, Limits
from statemachine.events import (
    OURS,
    AgentConnected,
    AgentDisconnected,
    AgentExited,
    AgentLifecycle,
    BuildCanceled,
    BuildCancelRequested,
    BuildFailed,
    BuildRequested,
    BuildStarted,
    BuildSucceeded,
    Data,
    DeadlinePassed,
    Event,
    Lifecycle,
    Quota,
    ReportedAgent,
    Transition,
    WaitResumed,
    WorkspaceDeleted,
)
from statemachine.machine import Decision, decide
from statemachine.replay import shown
from statemachine.states import State
from statemachine.views import state_changed

NOW: Final = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
LIMITS: Final = Limits()
START, STOP, DELETE = Transition.START, Transition.STOP, Transition.DELETE
_numbers = count(1)


def uid(label: str) -> str:
    """Return a UUID, always the same for the same label."""
    return str(uuid5(NAMESPACE_OID, label))


CHAT: Final = uid("chat")


def event(data: Data, source: str = "", identity: str = "") -> Event:
    """Return an event with `data`, from the usual sender of such data, with a new id."""
    name = {"agent": "/agent/x", "build": "/provisioner/p"}.get(data.name.split("_")[0], OURS)
    return Event(
        source=source or name,
        id=identity or uid(f"event {next(_numbers)}"),
        chat_id=CHAT,
        time=NOW,
        data=data,
    )


def agents(*names: str, **more: Any) -> tuple[ReportedAgent, ...]:
    """Return root agents with these names; `child=parent` adds an agent below another one."""
    roots = tuple(ReportedAgent(id=uid(name), name=name) for name in names)
    return roots + tuple(
        ReportedAgent(id=uid(name), name=name, parent_id=uid(parent))
        for name, parent in more.items()
    )


def requested(number: int = 1, transition: Transition = START, workspace: str = "w") -> Event:
    return event(
        BuildRequested(
            workspace_id=uid(workspace),
            workspace_name=workspace,
            owner_name="ann",
            build_id=uid(f"{workspace}/b{number}"),
            build_number=number,
            transition=transition,
        )
    )


def _of(number: int, transition: Transition, workspace: str, build: str | None) -> dict[str, Any]:
    return {
        "workspace_id": uid(workspace),
        "build_id": uid(build or f"{workspace}/b{number}"),
        "build_number": number,
        "transition": transition,
    }


def started(
    number: int = 1,
    transition: Transition = START,
    workspace: str = "w",
    build: str | None = None,
    **more: Any,
) -> Event:
    return event(BuildStarted(**_of(number, transition, workspace, build), **more))


def succeeded(
    number: int = 1,
    transition: Transition = START,
    made: tuple[ReportedAgent, ...] | None = None,
    workspace: str = "w",
    build: str | None = None,
) -> Event:
    if made is None:
        made = agents("main") if transition is START else ()
    return event(
        BuildSucceeded(
            **_of(number, transition, workspace, build),
            template_version_id=uid("version"),
            agents=made,
        )
    )


def failed(
    number: int = 1,
    transition: Transition = START,
    error: str = "disk full",
    code: str | None = None,
    quota: Quota | None = None,
    workspace: str = "w",
    build: str | None = None,
) -> Event:
    of = _of(number, transition, workspace, build)
    return event(BuildFailed(**of, error=error, error_code=code, quota=quota))


def canceled(
    number: int = 1,
    transition: Transition = START,
    workspace: str = "w",
    build: str | None = None,
) -> Event:
    return event(BuildCanceled(**_of(number, transition, workspace, build)))


def deleted(workspace: str = "w") -> Event:
    return event(WorkspaceDeleted(workspace_id=uid(workspace)), source="/provisioner/p")


def _by(agent: str, number: int, workspace: str) -> dict[str, Any]:
    return {
        "workspace_id": uid(workspace),
        "build_id": uid(f"{workspace}/b{number}"),
        "agent_id": uid(agent),
    }


def connected(sequence: int, agent: str = "main", number: int = 1, workspace: str = "w") -> Event:
    return event(AgentConnected(**_by(agent, number, workspace), sequence=sequence))


def disconnected(
    sequence: int | None, agent: str = "main", number: int = 1, workspace: str = "w"
) -> Event:
    source = OURS if sequence is None else ""
    return event(AgentDisconnected(**_by(agent, number, workspace), sequence=sequence), source)


def exited(
    exit_code: int | None = 1,
    agent: str = "main",
    number: int = 1,
    workspace: str = "w",
    **more: Any,
) -> Event:
    """Return the report of a provisioner that an agent's process is gone."""
    by = _by(agent, number, workspace)
    return event(
        AgentExited(**by, build_number=number, exit_code=exit_code, **more), "/provisioner/p"
    )


def cancel_requested(
    number: int | None = None, workspace: str = "w", reason: str | None = None
) -> Event:
    """Return the request to cancel build `number`, or without it the newest build."""
    build_id = None if number is None else uid(f"{workspace}/b{number}")
    return event(BuildCancelRequested(build_id=build_id, reason=reason), "/chat/service")


def lost(agent: str = "main", number: int = 1, workspace: str = "w") -> Event:
    """Return the event with which workers record that they noticed the loss of an agent."""
    return disconnected(None, agent, number, workspace)


def lifecycle(
    sequence: int, value: str, agent: str = "main", number: int = 1, workspace: str = "w"
) -> Event:
    by = _by(agent, number, workspace)
    return event(AgentLifecycle(**by, sequence=sequence, lifecycle=Lifecycle(value)))


def deadline(generation: int) -> Event:
    return event(DeadlinePassed(generation=generation))


def resumed(number: int = 1, workspace: str = "w") -> Event:
    return event(WaitResumed(build_id=uid(f"{workspace}/b{number}"), call_id="c"))


def apply(workspace: Chat, fact: Event, at: datetime = NOW) -> Decision:
    return decide(workspace, fact, at, LIMITS)


def chat(*facts: Event, of: Chat | None = None) -> Chat:
    """Return the chat after `facts`, which arrive one per second."""
    workspace = of or Chat(chat_id=CHAT)
    for second, fact in enumerate(facts):
        workspace = apply(workspace, fact, NOW + timedelta(seconds=second)).chat
    return workspace


def late(workspace: Chat) -> Event:
    """Return the event that the limit of the present state has passed."""
    return deadline(workspace.generation)


def then_late(*facts: Event) -> list[Event]:
    """Return `facts`, followed by the deadline of the state that they lead to."""
    return [*facts, late(chat(*facts))]


def path(*facts: Event) -> list[str]:
    """Return the published states, in order."""
    workspace, seen = Chat(chat_id=CHAT), list[str]()
    for fact in facts:
        decision = apply(workspace, fact)
        steps = getattr(decision, "steps", ())
        seen += [shown(step) for step in steps]
        workspace = decision.chat
    return seen


def place(workspace: Chat) -> dict[str, Any]:
    """Return what must not depend on the order: the snapshot without versions, times and causes."""
    seen = state_changed(workspace)
    for key in ("version", "previous_state", "deadline", "cause"):
        del seen[key]
    if seen["build"] is not None:
        for key in ("started_at", "begun_at", "cancel_requested_at"):
            del seen["build"][key]
    return seen | {
        "inner": workspace.state,
        "word": workspace.phase,
        "readiness": answers.readiness(workspace),
        "previous": sorted((record.id, record.deleted) for record in workspace.previous),
    }


def ways() -> dict[State, list[Event]]:
    """Return for each state the facts that lead to it from a new chat."""
    start, stop = requested(), requested(2, STOP)
    built, there = [start, succeeded()], [start, succeeded(), connected(1)]
    return {
        State.NONE: [],
        State.BUILDING: [start],
        State.AGENT_CONNECTING: built,
        State.SCRIPTS_RUNNING: there,
        State.READY: [*there, lifecycle(2, "ready")],
        State.BUILD_FAILED: [start, failed()],
        State.BUILD_CANCELED: [start, canceled()],
        State.BUILD_TIMED_OUT: then_late(start),
        State.SELECTION_ERROR: [start, succeeded(made=agents(child="nobody"))],
        State.AGENT_NOT_READY: then_late(*built),
        State.SCRIPTS_FAILED: [*there, lifecycle(2, "start_error")],
        State.SCRIPTS_TIMED_OUT: then_late(*there),
        State.STOPPING: [*there, stop],
        State.STOPPED: [*there, stop, succeeded(2, STOP)],
        State.STOP_FAILED: [*there, stop, failed(2, STOP)],
        State.STOP_CANCELED: [*there, stop, canceled(2, STOP)],
        State.STOP_TIMED_OUT: then_late(*there, stop),
        State.CANCELING_BUILD: [start, started(), cancel_requested(1)],
        State.CANCELING_STOP: [*there, stop, started(2, STOP), cancel_requested()],
        State.BUILD_ABANDONED: [start, cancel_requested()],
        State.STOP_ABANDONED: [*there, stop, cancel_requested(2)],
    }


def in_state(state: State) -> Chat:
    return chat(*ways()[state])


def facts_of(workspaces: Iterable[Chat]) -> list[dict[str, Any]]:
    return [place(workspace) for workspace in workspaces]
