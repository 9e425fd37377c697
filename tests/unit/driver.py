"""A chat and its calls: folds facts and evaluates calls as a worker does, one event at a time."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from statemachine import tool_rules
from statemachine.calls import Answered, Call, Known, Policy, Requested, Resumed, Waiting
from statemachine.chat import Chat
from statemachine.events import BuildRequested, DeleteRequested, Event, ToolRequested
from statemachine.machine import decide
from statemachine.states import State
from statemachine.templates import Catalog, Template, Version, read
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
    made = uid(f"template {manifest.name}")
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
    """One chat with its open calls, its answers, the requested builds and the published states."""

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
            seed=b"seed",
        )
        self.open: dict[str, Call] = {}
        self.answers: dict[str, Answered] = {}
        self.jobs: list[BuildRequested] = []
        """The requested builds, including those of replaced workspaces."""
        self.states: list[State] = []
        """The published states, in order."""
        self._calls = 0
        self.hear(*facts)

    def hear(self, *facts: Event) -> Desk:
        """Apply facts, and evaluate the waiting calls after each."""
        for fact in facts:
            self._decide(fact)
            self._settle()
        return self

    def ask(self, tool: str, call_id: str | None = None, **args: Any) -> Answered | None:
        """Make a call; return its answer, or None while it waits."""
        self._calls += 1
        name = call_id or f"call-{self._calls}"
        request = asked(tool, name, **args)
        self._decide(request)
        assert isinstance(request.data, ToolRequested)
        call = Call(
            chat_id=CHAT,
            call_id=name,
            tool=tool,
            args=args,
            organization_id=ORG,
            owner_id=ANN,
            owner_name="ann",
            asked_at=NOW,
            order=self._calls,
        )
        self._judge(call)
        self._settle()
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
        return tool_rules.canceled(self.open.pop(call_id), self.chat)

    def delete(self) -> None:
        """Request the deletion of the workspace."""
        request = event(DeleteRequested(), source="/chat/service")
        self._decide(request)
        verdict = tool_rules.deletion(self.chat, self.known, request.id)
        if verdict is not None:
            self._decide(event(verdict))
            if isinstance(verdict, BuildRequested):
                self.jobs.append(verdict)
        self._settle()

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

    def _decide(self, fact: Event) -> None:
        decision = decide(self.chat, fact, NOW, LIMITS)
        self.states += [step.state for step in getattr(decision, "steps", ())]
        self.chat = decision.chat

    def _judge(self, call: Call) -> bool:
        verdict = tool_rules.evaluate(call, self.chat, self.known)
        match verdict:
            case Answered():
                self.open.pop(call.call_id, None)
                self.answers[call.call_id] = verdict
                return False
            case Waiting(wait=wait):
                self.open[call.call_id] = replace(call, wait=wait)
                return False
            case Resumed(event=again, wait=wait):
                self.open[call.call_id] = replace(call, wait=wait)
                self._decide(event(again))
            case Requested(build=build, wait=wait, replaces=replaces):
                self.open[call.call_id] = replace(call, wait=wait)
                self.jobs += [] if replaces is None else [replaces]
                self.jobs.append(build)
                self._decide(event(build))
        return True

    def _settle(self) -> None:
        """Evaluate the waiting calls in order of arrival, until no verdict changes the chat."""
        while any(self._judge(call) for call in list(self.open.values())):
            pass
