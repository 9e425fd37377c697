"""Desks in a given state, and a provisioner and an agent that work on their newest job."""

from __future__ import annotations

from typing import Any, Self

from statemachine.calls import Answered
from statemachine.events import (
    AgentConnected,
    AgentLifecycle,
    BuildCanceled,
    BuildFailed,
    BuildSucceeded,
    Lifecycle,
    Quota,
    ReportedAgent,
    Transition,
)
from statemachine.states import State
from tests.unit.driver import PYTHON, Desk
from tests.unit.facts import agents, event, started, uid, ways


def is_error(answer: Answered | None) -> bool:
    """Return whether the answer is an error of the call itself."""
    return answer is not None and answer.is_error and set(answer.result) == {"error"}


def at(state: State, **more: Any) -> Desk:
    """Return a chat in that state; its workspace `w` was made elsewhere from template `python`."""
    if state is State.NONE:
        return Desk(**more)
    known = started(1, workspace_name="w", owner_name="ann", template_id=PYTHON.id)
    way = ways()[state]
    desk = Desk(*way[:1], known, *way[1:], **more)
    assert desk.chat.state is state
    return desk


class Jobs:
    """Reports the facts of the newest job, as its provisioner and agent would."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._sequence = 0
        self.made: tuple[ReportedAgent, ...] = ()

    def succeed(self, made: tuple[ReportedAgent, ...] | None = None) -> Self:
        job = self.desk.job
        if made is None:
            made = agents(f"main of {job.build_id}") if job.transition is Transition.START else ()
        self.made = made
        version = job.template.version_id if job.template else uid("version")
        fact = BuildSucceeded(**self._of(), template_version_id=version, agents=made)
        self.desk.hear(event(fact))
        return self

    def fail(self, error: str, code: str | None = None, quota: Quota | None = None) -> Self:
        self.desk.hear(event(BuildFailed(**self._of(), error=error, error_code=code, quota=quota)))
        return self

    def cancel(self) -> Self:
        self.desk.hear(event(BuildCanceled(**self._of())))
        return self

    def connect(self) -> Self:
        self.desk.hear(event(AgentConnected(**self._by())))
        return self

    def live(self, value: str) -> Self:
        self.desk.hear(event(AgentLifecycle(**self._by(), lifecycle=Lifecycle(value))))
        return self

    def _of(self) -> dict[str, Any]:
        job = self.desk.job
        return {
            "workspace_id": job.workspace_id,
            "build_id": job.build_id,
            "build_number": job.build_number,
            "transition": job.transition,
        }

    def _by(self) -> dict[str, Any]:
        self._sequence += 1
        job = self.desk.job
        return {
            "workspace_id": job.workspace_id,
            "build_id": job.build_id,
            "agent_id": self.made[0].id,
            "sequence": self._sequence,
        }
