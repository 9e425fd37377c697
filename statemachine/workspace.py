"""One workspace as its facts describe it: its builds, how they ended, and the agent that was chosen.

A chat has one current workspace and remembers previous ones; both are a `WorkspaceRecord`.
Every value here is an immutable struct. `msgspec.structs.replace` makes a changed copy, and mypy checks the
fields that it is given (`mypy_plugin.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from statemachine.events import Retried, Transition
from statemachine.states import Phase

AGENT_SUFFIX: Final = "-coderd-chat"
"""An agent whose name has this suffix, in any case, was meant for the chat."""
_LISTED_NAMES: Final = 64
_LISTED_NAME: Final = 255
"""How many names an error lists, and how many characters of each: a published state has a size limit."""


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An immutable value. Stored as JSON, it leaves out the fields that have their default."""


class BuiltTemplate(Value, frozen=True):
    """The template version that a job asked for, and the pool that the job was sent to."""

    id: str
    name: str
    version_id: str
    pool: str


class BuiltAgent(Value, frozen=True):
    """An agent that a successful build reported."""

    id: str
    name: str
    parent_id: str | None = None
    display_order: int = 0


class QuotaUse(Value, frozen=True):
    """The used part of an owner's quota, when a build failed because of that quota."""

    credits_consumed: float
    budget: float


class Ending(StrEnum):
    """The outcome of a build in one word."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Outcome(Value, frozen=True):
    """The terminal fact of a build."""

    ending: Ending
    agents: tuple[BuiltAgent, ...] = ()
    error: str | None = None
    error_code: str | None = None
    quota: QuotaUse | None = None


class Build(Value, frozen=True, forbid_unknown_fields=True):
    """A build, as far as its facts are known."""

    id: str
    number: int
    transition: Transition
    started_at: datetime
    begun_at: datetime | None = None
    """The time at which workspaced received its `build_started`, or its terminal fact if that came first."""
    cancel_requested_at: datetime | None = None
    cancel_reason: str | None = None
    """Text for people from the request to cancel it."""
    untouched: bool = False
    """The build is a delete that its provisioner canceled before any `build_started` was stored: it changed
    nothing."""
    elsewhere: bool = False
    """It was made elsewhere: workspaced did not request it."""
    template: BuiltTemplate | None = None
    template_version_id: str | None = None
    parameters: dict[str, str] = {}
    preset_id: str | None = None
    ttl_ms: int | None = None
    bump_ms: int = 0
    """How far activity puts the end of the lifetime off; 0: not at all."""
    retried: Retried | None = None
    """For a stop or delete that workers requested: when they request it again if it ends without success."""
    outcome: Outcome | None = None
    ended_at: datetime | None = None
    """The time at which workspaced received the terminal fact."""
    expired: bool = False
    """The lifetime that began when it ended has passed, and an earlier version has acted on that."""
    put_off_to: datetime | None = None
    """The end of the lifetime, if somebody has put it off."""

    @property
    def pool(self) -> str | None:
        """The pool whose provisioners work on it; None if it was made elsewhere."""
        return None if self.elsewhere or self.template is None else self.template.pool

    @property
    def being_canceled(self) -> bool:
        """Whether it was canceled, and its provisioner has not reported its end."""
        return self.cancel_requested_at is not None and self.outcome is None

    @property
    def canceled_unbegun(self) -> bool:
        """Whether it was canceled before any provisioner reported that it works on it."""
        return self.being_canceled and self.begun_at is None

    @property
    def changed_nothing(self) -> bool:
        """Whether it is a delete that was canceled and of which no `build_started` is known."""
        return self.transition is Transition.DELETE and (self.untouched or self.canceled_unbegun)

    @property
    def succeeded(self) -> bool:
        """Whether it ended successfully."""
        return self.outcome is not None and self.outcome.ending is Ending.SUCCEEDED

    @property
    def leaves_running(self) -> bool:
        """Whether its end leaves the workspace running: a start that succeeded, or another build that did not."""
        if self.outcome is None:
            return False  # a provisioner is working on it
        return self.succeeded == (self.transition is Transition.START)


class Retry(Value, frozen=True):
    """A stop or delete that workers request again after it has ended without success."""

    transition: Transition
    count: int
    """How many attempts have ended without success."""
    counted: str | None = None
    """The id of the last build among them."""
    at: datetime | None = None
    """When to request it again; None while a build is being made."""


class WorkspaceRecord(Value, frozen=True):
    """The known facts of one workspace. Names are None until a fact reports them."""

    id: str
    name: str | None = None
    owner_name: str | None = None
    template_id: str | None = None
    build: Build | None = None
    """The newest build; of the current workspace: the build that the chat follows."""
    last_start: Build | None = None
    """The newest start build, when `build` is not a start."""
    before_delete: tuple[Build, ...] = ()
    """When `build` is a delete: the stops and deletes between the last start and it.

    They hold only what `phase_left` and `stops_at` need.
    """
    canceled: tuple[Build, ...] = ()
    """Superseded builds that were canceled and whose end is not known: a provisioner may still work on them.

    They hold only what is needed to tell provisioners of the cancel.
    """
    superseded: tuple[str, ...] = ()
    """Ids of the current workspace's builds that a newer build replaced."""
    chosen: BuiltAgent | None = None
    """The agent chosen for the chat, once a start build of the current workspace succeeded."""
    deleted: bool = False
    ours: bool = True
    """The workspace was the chat's current one at some time. Later facts never make it current again."""
    orphaned_at: datetime | None = None
    """The time since which it is known to run without belonging to a chat; None if it does not."""
    grace_over: bool = False
    """Its grace period as an orphan has passed."""
    never_started: bool = False
    """Workers requested its first build, and none of its start builds has succeeded: nobody has worked in it."""
    retry: Retry | None = None
    """The stop or delete that workers request again."""

    @property
    def start_build(self) -> Build | None:
        """The newest start build."""
        if self.build is not None and self.build.transition is Transition.START:
            return self.build
        return self.last_start

    @property
    def phase_left(self) -> Phase:
        """The phase of the workspace after the newest build, a stop or delete, has failed.

        `RUNNING`, `STOPPED` or `FAILED_BUILD`; or `FAILED_DELETE` if nobody knows what the delete has left.
        """
        started = self.last_start is not None and self.last_start.succeeded
        left = Phase.RUNNING if started else Phase.FAILED_BUILD
        earlier = (self.build, self.last_start, *self.before_delete)
        builds = sorted((b for b in earlier if b), key=lambda build: build.number, reverse=True)
        last = next((build for build in builds if not build.changed_nothing), None)
        if last is None or last.transition is Transition.START:
            return left
        if last.transition is Transition.DELETE:
            return Phase.FAILED_DELETE
        return Phase.STOPPED if last.succeeded else left

    def stops_at(self, *, given_up: bool) -> datetime | None:
        """Return when workers stop the running workspace: at the end of its lifetime, or when they try again.

        None while it does not run, and while a build works on it. A failed stop does not change it before the
        lifetime ends. `given_up`: a stop or delete counts as failed although its end is not known.
        """
        build, start = self.build, self.start_build
        if build is None or start is None or start.ended_at is None or not start.succeeded:
            return None
        if not start.ttl_ms:
            return None
        if self.retry is not None:
            return self.retry.at if self.retry.transition is Transition.STOP else None
        if build is not start and (build.succeeded or (build.outcome is None and not given_up)):
            return None
        stops = [b for b in self.before_delete if b.transition is Transition.STOP]
        last_stop = max(stops, key=lambda stop: stop.number, default=None)
        if last_stop and last_stop.number > start.number and last_stop.succeeded:
            return None  # it was stopped before the delete that failed
        return start.put_off_to or start.ended_at + timedelta(milliseconds=start.ttl_ms)


class Unselectable(Value, frozen=True):
    """No agent can be chosen; `message` says why."""

    message: str


def choose_agent(agents: Sequence[BuiltAgent]) -> BuiltAgent | Unselectable:
    """Choose the chat's agent among those without a parent. `agents` must not be empty.

    The only one whose name has `AGENT_SUFFIX` wins; otherwise the first by display order and name.
    """
    roots = sorted(
        (agent for agent in agents if agent.parent_id is None),
        key=lambda agent: (agent.display_order, agent.name.lower(), agent.name, agent.id),
    )
    if not roots:
        return Unselectable(
            message="the workspace has agents, but each of them belongs to another agent"
        )
    meant = [agent for agent in roots if agent.name.lower().endswith(AGENT_SUFFIX)]
    if len(meant) > 1:
        names = ", ".join(agent.name[:_LISTED_NAME] for agent in meant[:_LISTED_NAMES])
        if len(meant) > _LISTED_NAMES:
            names += f" and {len(meant) - _LISTED_NAMES} more"
        return Unselectable(
            message=f"several agents are named for the chat (…{AGENT_SUFFIX}): {names}; "
            "leave the suffix to one"
        )
    return (meant or roots)[0]
