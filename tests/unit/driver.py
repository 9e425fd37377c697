"""A chat and its calls: takes one step for each event, as a worker does for those of a batch."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from msgspec import structs

from statemachine.calls import Answered, Call, Known, Policy, StoredCall
from statemachine.chat import Chat
from statemachine.events import (
    BuildRequested,
    DeleteRequested,
    Event,
    ToolCanceled,
    ToolRequested,
    event_digest,
)
from statemachine.states import State
from statemachine.step import (
    AlarmRang,
    InboundEvent,
    Input,
    Loaded,
    PublishAnswer,
    PublishCancel,
    PublishJob,
    PublishState,
    step,
)
from statemachine.templates import Catalog, Template, Version, read, template_id
from tests.unit.facts import CHAT, LIMITS, NOW, deadline, event, uid

ORG, ANN = uid("org"), uid("ann")
PLAIN: Final = """
name = "python"
display_name = "Python"
description = "A repository with a virtual environment"
[build]
start = "true"
"""


def template(text: str = PLAIN, *, organization: str = ORG, version: str = "version") -> Template:
    """Return a pushed template."""
    manifest = read(text)
    made = template_id(organization, manifest.name)
    return Template(
        id=made,
        organization_id=organization,
        active=Version(
            id=uid(version),
            template_id=made,
            manifest=manifest,
            readme=None,
            sha256="0" * 64,
            size=1,
        ),
    )


def catalog(*templates: Template, older: tuple[Version, ...] = ()) -> Catalog:
    """Return a catalog of these templates, and of these versions that are no longer active."""
    versions = (*(t.active for t in templates), *older)
    return Catalog({t.id: t for t in templates}, {version.id: version for version in versions})


PYTHON: Final = template()


def asked(tool: str, call_id: str = "c", organization: str = ORG, **args: Any) -> Event:
    """Return a tool request."""
    return event(
        ToolRequested(
            call_id=call_id,
            tool=tool,
            args=args,
            organization_id=organization,
            owner_id=ANN,
            owner_name="ann",
        ),
        source="/chat/service",
    )


class Desk:
    """One chat with its calls, its answers, the requested builds and the published states."""

    def __init__(
        self,
        *facts: Event,
        known: Catalog | None = None,
        policy: Policy | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.chat = Chat(chat_id=CHAT)
        self.known = Known(
            catalog=known or catalog(PYTHON),
            policy=policy or Policy(),
            names={ANN: set(names)},
        )
        self.open: dict[str, Call] = {}
        self.answers: dict[str, Answered] = {}
        """The answers by call, without `workspace_id`."""
        self.workspaces: dict[str, str] = {}
        """The `workspace_id` of each answer that is about a workspace or a build."""
        self.conflicts: set[str] = set()
        """The calls whose newest answer says that another request had other content."""
        self.jobs: list[BuildRequested] = []
        """The requested builds, including those of replaced workspaces."""
        self.states: list[State] = []
        """The published states, in order."""
        self.entries: list[str] = []
        """The types of the entries of the event log."""
        self.told: list[PublishCancel] = []
        """What provisioners were told of canceled builds."""
        self.unneeded_jobs: set[str] = set()
        """Builds whose jobs leave the queue, because they were canceled before they began."""
        self.at = NOW
        self._calls: dict[str, StoredCall] = {}
        self._asked = self._steps = 0
        self.hear(*facts)

    def hear(self, *facts: Event) -> Desk:
        """Take a step for each of these events."""
        for fact in facts:
            self._step(fact)
        return self

    def ask(self, tool: str, call_id: str | None = None, **args: Any) -> Answered | None:
        """Make a call; return its answer, or None while it waits."""
        self._asked += 1
        name = call_id or f"call-{self._asked}"
        self._step(asked(tool, name, **args))
        return self.answers.get(name)

    def create(self, call_id: str | None = None, **args: Any) -> Answered | None:
        """Call create_workspace with the template `python`."""
        return self.ask("create_workspace", call_id, **{"template_id": PYTHON.id, **args})

    def start(self, call_id: str | None = None, **args: Any) -> Answered | None:
        return self.ask("start_workspace", call_id, **args)

    def stop(self, call_id: str | None = None) -> Answered | None:
        return self.ask("stop_workspace", call_id)

    def cancel(self, call_id: str) -> Answered:
        """Cancel a waiting call; return its answer."""
        self._step(event(ToolCanceled(call_id=call_id), source="/chat/service"))
        return self.answers[call_id]

    def delete(self) -> None:
        """Request the deletion of the workspace."""
        self._step(event(DeleteRequested(), source="/chat/service"))

    def late(self) -> Desk:
        """Let the limit of the present state pass."""
        return self.hear(deadline(self.chat.generation))

    def result(self, call_id: str) -> dict[str, Any]:
        """Return the result of a call; its answer must not be an error."""
        assert not self.answers[call_id].is_error, self.answers[call_id]
        return self.answers[call_id].result

    @property
    def job(self) -> BuildRequested:
        """The newest requested build."""
        return self.jobs[-1]

    def _step(self, fact: Event) -> None:
        self._steps += 1
        known = structs.replace(self.known, seed=b"seed %d" % self._steps)
        loaded = Loaded(self.chat, self.open, self._calls)
        received = InboundEvent(fact, event_digest(fact.source, fact.id))
        self._take_step(loaded, received, known)

    def pass_time(self, by: timedelta) -> Desk:
        """Let time pass, and the timers that are due take effect."""
        self.at += by
        self._steps += 1
        known = structs.replace(self.known, seed=b"seed %d" % self._steps)
        loaded = Loaded(self.chat, self.open, self._calls)
        self._take_step(loaded, AlarmRang(CHAT, (self.at,)), known)
        return self

    def _take_step(self, loaded: Loaded, received: Input, known: Known) -> None:
        taken = step(loaded, [received], known, LIMITS, self.at)
        self.chat, self.open = taken.chat, taken.open
        self.entries += [entry.event.data.name for entry in taken.entries]
        self.unneeded_jobs |= taken.unneeded_jobs
        self._calls |= taken.calls
        # A step requests the build of a replaced workspace after that of the new one.
        self.jobs += [e.build for e in reversed(taken.effects) if isinstance(e, PublishJob)]
        for effect in taken.effects:
            match effect:
                case PublishState(chat=chat):
                    self.states.append(chat.state)
                case PublishCancel():
                    self.told.append(effect)
                case PublishAnswer(call=call, answer=answer):
                    self._take(call, answer)

    def _take(self, call: Call, answer: Answered) -> None:
        result = dict(answer.result)
        if not {"workspace_name", "build_id"}.isdisjoint(result):
            self.workspaces[call.call_id] = result.pop("workspace_id")
        assert "workspace_id" not in result
        if "workspace_name" in result:
            assert self.chat.current is not None
            assert self.workspaces[call.call_id] == self.chat.current.id
        self.answers[call.call_id] = replace(answer, result=result)
        self.conflicts |= {call.call_id} if call.conflict else set()
