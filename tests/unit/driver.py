"""A chat with its calls, folded and judged the way a worker does it, one event at a time."""

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
    """A pushed template."""
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
    """These templates, and these versions that are not active any more."""
    versions = (*(t.active for t in templates), *older)
    return Catalog({t.id: t for t in templates}, {version.id: version for version in versions})


PYTHON: Final = template()


def asked(tool: str, call_id: str = "c", organization: str = ORG, **args: Any) -> Event:
    """A tool request."""
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
    """One chat, its open calls and what came of them."""

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
        """Builds asked for, those of replaced workspaces included."""
        self.states: list[State] = []
        """What was published, in order."""
        self._calls = 0
        self.hear(*facts)

    def hear(self, *facts: Event) -> Desk:
        """Let facts come."""
        for fact in facts:
            self._decide(fact)
            self._settle()
        return self

    def ask(self, tool: str, call_id: str | None = None, **args: Any) -> Answered | None:
        """Let a call come; return its answer unless it waits."""
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
        """Ask for a workspace of the template `python`."""
        return self.ask("create_workspace", call_id, **{"template_id": PYTHON.id, **args})

    def start(self, call_id: str | None = None, **args: Any) -> Answered | None:
        return self.ask("start_workspace", call_id, **args)

    def stop(self, call_id: str | None = None) -> Answered | None:
        return self.ask("stop_workspace", call_id)

    def cancel(self, call_id: str) -> Answered:
        """Let the chat not wait any more."""
        return tool_rules.canceled(self.open.pop(call_id), self.chat)

    def delete(self) -> None:
        """Let somebody ask for the end of the workspace."""
        request = event(DeleteRequested(), source="/chat/service")
        self._decide(request)
        verdict = tool_rules.deletion(self.chat, self.known, request.id)
        if verdict is not None:
            self._decide(event(verdict))
            if isinstance(verdict, BuildRequested):
                self.jobs.append(verdict)
        self._settle()

    def late(self) -> Desk:
        """Let the limit of the present state be over."""
        return self.hear(deadline(self.chat.generation))

    def result(self, call_id: str) -> dict[str, Any]:
        """What a call was answered, which is no error of its own."""
        assert not self.answers[call_id].is_error, self.answers[call_id]
        return self.answers[call_id].result

    @property
    def job(self) -> BuildRequested:
        """The newest build that was asked for."""
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
        """Judge the waiting calls in the order they came, until none has more to say."""
        while any(self._judge(call) for call in list(self.open.values())):
            pass
