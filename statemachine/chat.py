"""The snapshot of one chat: everything known about its workspaces.

It holds folded facts (builds, agents, also early ones) beside the state that the facts amount to. Each
fold takes facts in any order to the same value; `machine` does the moves.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from pydantic import Field

from statemachine import events
from statemachine.events import Agent, Frozen, Lifecycle, Quota, TemplateRef, Transition
from statemachine.states import STATE_INFO, AgentStatus, Limit, Phase, Reason, State

STARTUP: Final = frozenset(
    (
        Lifecycle.CREATED,
        Lifecycle.STARTING,
        Lifecycle.START_TIMEOUT,
        Lifecycle.START_ERROR,
        Lifecycle.READY,
    )
)
"""The lifecycles that tell how the start went; the others come after it."""
UNSETTLED: Final = frozenset((Lifecycle.CREATED, Lifecycle.STARTING))

MOST_AGENTS: Final = 1024
"""Agents remembered of one chat: of its builds, early ones, and of workspaces it never had."""
MOST_REJECTED: Final = 16
"""Builds of which a fact was rejected that are remembered of one chat."""
MOST_BEFORE_DELETE: Final = 16
"""Stops and deletes remembered that came before a delete."""
MOST_PAST: Final = 64
"""Superseded builds and former workspaces remembered of one chat."""


ENDS: Final = frozenset(
    model.name for model in (events.BuildSucceeded, events.BuildFailed, events.BuildCanceled)
)
"""The types of a build's terminal facts."""
TOLD_BY_PROVISIONERS: Final = frozenset(
    model.name  # type: ignore[attr-defined]
    for model in events.BY_KIND["provisioner"]
)


class Limits(NamedTuple):
    """How long a state may last."""

    build: timedelta = timedelta(minutes=10)
    agent_connect: timedelta = timedelta(minutes=2)
    startup_scripts: timedelta = timedelta(minutes=10)
    orphan_grace: timedelta = timedelta(minutes=15)
    """How long a workspace that no chat has may run; a limit of no state."""

    def of(self, limit: Limit) -> timedelta:
        """Return the value of `limit`."""
        return getattr(self, limit)  # type: ignore[no-any-return]


class WorkspaceRef(Frozen):
    """The workspace that the chat is bound to. Names are unknown until a fact tells them."""

    id: str
    name: str | None = None
    owner_name: str | None = None
    template_id: str | None = None


class Ending(StrEnum):
    """How a build ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Outcome(Frozen):
    """The terminal fact of a build."""

    ending: Ending = Field(strict=False)
    agents: tuple[Agent, ...] = Field(default=(), strict=False)
    error: str | None = None
    error_code: str | None = None
    quota: Quota | None = None


class Build(Frozen):
    """A build as far as its facts are known."""

    id: str
    number: int
    transition: Transition = Field(strict=False)
    started_at: datetime = Field(strict=False)
    taken: bool = False
    """A provisioner has said that it began."""
    untouched: bool = False
    """A delete that was canceled, and of which no `build_started` is stored: it changed nothing."""
    template: TemplateRef | None = None
    template_version_id: str | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    preset_id: str | None = None
    ttl_ms: int | None = None
    outcome: Outcome | None = None
    ended_at: datetime | None = Field(default=None, strict=False)
    """When its end was heard of, by our own clock."""
    expired: bool = False
    """The lifetime that began with its end is over, and was acted upon."""

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.outcome is not None and self.outcome.ending is Ending.SUCCEEDED


class AgentFacts(Frozen):
    """What an agent has reported, each field by the highest sequence that spoke of it.

    A loss that workers noticed ends this order: whatever the agent reports next shows that it is there,
    and sequences are compared from that report on. Values last until a later report replaces them.
    """

    id: str
    workspace_id: str
    build_id: str
    highest: int = -1
    connection_sequence: int = -1
    told: bool | None = None
    """Whether it is connected, by its own word."""
    seen: bool = False
    """It was connected at some time."""
    lifecycle_sequence: int = -1
    lifecycle: Lifecycle | None = Field(default=None, strict=False)
    begun: bool = False
    """It reported a lifecycle beyond `created` at some time."""
    startup_sequence: int = -1
    startup: Lifecycle | None = Field(default=None, strict=False)
    lost_at: int | None = None
    """Workers noticed its loss when `highest` was this; the agent's next report undoes the loss."""

    def after(self, fact: events.AgentFact) -> AgentFacts:
        """Return the value with `fact` folded in: of each field the highest sequence counts."""
        if fact.sequence is None:
            return self.model_copy(update={"lost_at": self.highest})
        if self.lost_at is not None:
            found = {"lost_at": None} if fact.sequence > self.lost_at else _FOUND_AGAIN
            return self.model_copy(update=found).after(fact)
        new: dict[str, object] = {"highest": max(self.highest, fact.sequence)}
        newest = fact.sequence > self.connection_sequence
        if isinstance(fact, events.AgentConnected):
            new["seen"] = True
            if newest:
                new |= {"connection_sequence": fact.sequence, "told": True}
        elif isinstance(fact, events.AgentDisconnected):
            if newest:
                new |= {"connection_sequence": fact.sequence, "told": False}
        else:
            new |= self._lived(fact, newest=newest)
        return self.model_copy(update=new)

    def _lived(self, fact: events.AgentLifecycle, *, newest: bool) -> dict[str, object]:
        new: dict[str, object] = {}
        if fact.lifecycle is not Lifecycle.CREATED:
            new["begun"] = True
            if newest:  # whoever reports is there
                new |= {"connection_sequence": fact.sequence, "told": True}
        if fact.sequence > self.lifecycle_sequence:
            new |= {"lifecycle_sequence": fact.sequence, "lifecycle": fact.lifecycle}
        if fact.lifecycle in STARTUP and fact.sequence > self.startup_sequence:
            new |= {"startup_sequence": fact.sequence, "startup": fact.lifecycle}
        return new

    @property
    def connected(self) -> bool | None:
        """Whether it is connected; None before it said anything of it."""
        return self.told if self.lost_at is None else False

    @property
    def start_ended(self) -> bool:
        """Whether the start has come to an end, well or ill: the latest lifecycle is settled."""
        return self.lifecycle is not None and self.lifecycle not in UNSETTLED


_FOUND_AGAIN: Final = {
    "lost_at": None,
    "highest": -1,
    "connection_sequence": -1,
    "lifecycle_sequence": -1,
    "startup_sequence": -1,
}
"""A lost agent is back with a lower sequence: it was restored, or lost its count."""


class Failure(Frozen):
    """Why the state is `failed`."""

    reason: Reason = Field(strict=False)
    message: str
    error_code: str | None = None


class Rejection(Frozen):
    """A fact about a build that could not be accepted: the last end of it, or the last other fact."""

    build_id: str
    fact: str
    """The type's name, e.g. `build_failed`; empty if nobody could read it."""
    detail: str
    pool: str | None = None
    """Of a provisioner that is bound to one: it counts for builds of that pool."""

    @property
    def ends(self) -> bool:
        """Whether it was the end of the build."""
        return self.fact in ENDS

    def concerns(self, build: Build) -> bool:
        """Say whether it still matters to `build`, and comes from somebody who may speak of that.

        Once the build's end is known, nothing that its provisioner had to tell is missing any more.
        """
        if build.id != self.build_id or (build.outcome and self.fact in TOLD_BY_PROVISIONERS):
            return False
        return None in (self.pool, build.template) or (
            build.template is not None and build.template.pool == self.pool
        )


class Cause(Frozen):
    """The event that made the present version."""

    source: str
    id: str
    type: str


class PreviousWorkspace(Frozen):
    """A workspace that the chat does not have, or no longer."""

    id: str
    deleted: bool
    ours: bool = True
    """The chat had it once; what is said of it later never binds it again."""
    ref: WorkspaceRef | None = None
    build: Build | None = None
    """The newest build known of it."""
    last_start: Build | None = None
    """The newest start build known of one made elsewhere, when `build` is no start."""
    before_delete: tuple[Build, ...] = Field(default=(), strict=False)
    """As of a chat's own workspace, for a chat that may get this one."""
    orphaned_at: datetime | None = Field(default=None, strict=False)
    """Since when it is known to run without a chat."""
    overdue: bool = False
    """Its grace is over. It is listed for as long as it runs, but not seen to again."""


class Chat(Frozen):
    """The snapshot of one chat after `version` moves."""

    chat_id: str
    version: int = 0
    seq: int = 0
    """Entries of the chat's event log."""
    state: State = Field(default=State.NONE, strict=False)
    previous_state: State = Field(default=State.NONE, strict=False)
    organization_id: str | None = None
    owner_id: str | None = None
    owner_name: str | None = None
    ref: WorkspaceRef | None = None
    build: Build | None = None
    """The followed build."""
    last_start: Build | None = None
    """The newest start build, when the followed one is no start."""
    chosen: Agent | None = None
    agents: tuple[AgentFacts, ...] = Field(default=(), strict=False)
    failure: Failure | None = None
    deadline: datetime | None = Field(default=None, strict=False)
    generation: int = 0
    """Counts deadlines, so that a late timer is told from the present one."""
    cause: Cause | None = None
    former: tuple[PreviousWorkspace, ...] = Field(default=(), strict=False)
    before_delete: tuple[Build, ...] = Field(default=(), strict=False)
    """When the followed build is a delete: the stops and deletes between the last start and it.

    Without what nobody asks of them. A delete that changed nothing leaves what they had left.
    """
    latest_build: str | None = None
    """The id of the build followed last, also after its workspace is gone."""
    past: tuple[str, ...] = Field(default=(), strict=False)
    """Builds of this workspace that were superseded."""
    deleted_builds: tuple[str, ...] = Field(default=(), strict=False)
    """Builds of the deleted workspace whose place this one took at once, the last one last.

    What waited for one of them is not answered with what becomes of this workspace.
    """
    rejected: tuple[Rejection, ...] = Field(default=(), strict=False)
    """What could not be accepted about this workspace's builds, also of those not known yet."""
    open_calls: int = 0
    changed_at: datetime | None = Field(default=None, strict=False)

    @property
    def start_build(self) -> Build | None:
        """The newest start build, followed or not."""
        if self.build is not None and self.build.transition is Transition.START:
            return self.build
        return self.last_start

    @property
    def rejection(self) -> Rejection | None:
        """What could not be accepted about the followed build and still matters; best its end."""
        build = self.build
        if build is None or not self.rejected:
            return None
        found = [rejection for rejection in self.rejected if rejection.concerns(build)]
        return next((r for r in found if r.ends), found[-1] if found else None)

    @property
    def standing(self) -> Phase:
        """What the builds made of the workspace, when the followed one is a stop or delete that failed.

        `RUNNING`, `STOPPED`, `FAILED_BUILD`, or `FAILED_DELETE`: nobody knows what is left.
        """
        started = self.last_start is not None and self.last_start.succeeded
        left = Phase.RUNNING if started else Phase.FAILED_BUILD
        earlier = (self.build, self.last_start, *self.before_delete)
        builds = sorted((b for b in earlier if b), key=lambda build: build.number, reverse=True)
        last = next((build for build in builds if not build.untouched), None)
        if last is None or last.transition is Transition.START:
            return left
        if last.transition is Transition.DELETE:
            return Phase.FAILED_DELETE
        return Phase.STOPPED if last.succeeded else left

    @property
    def expires_at(self) -> datetime | None:
        """When the running workspace has lived as long as it may.

        None while it does not run or somebody is at it; a stop that failed leaves it as it was.
        """
        build, start = self.build, self.start_build
        if build is None or start is None or start.ended_at is None or not start.succeeded:
            return None
        stopping = build is not start and (build.outcome is None or build.succeeded)
        if stopping or start.expired or not start.ttl_ms:
            return None
        stops = [b for b in self.before_delete if b.transition is Transition.STOP]
        last_stop = max(stops, key=lambda stop: stop.number, default=None)
        if last_stop and last_stop.number > start.number and last_stop.succeeded:
            return None  # it was stopped before somebody tried to delete it
        return start.ended_at + timedelta(milliseconds=start.ttl_ms)

    def facts_of(self, agent_id: str) -> AgentFacts | None:
        """Return what the agent of the chat's workspace has reported; in `none`, any agent."""
        return next((facts for facts in self._heard(agent_id) if self._has(facts)), None)

    def heard_from(self, agent_id: str) -> AgentFacts | None:
        """Return what the agent has reported, also one of a workspace that the chat may get yet."""
        heard = self._heard(agent_id)
        return next((facts for facts in heard if self._has(facts)), heard[0] if heard else None)

    def _heard(self, agent_id: str) -> list[AgentFacts]:
        return [facts for facts in self.agents if facts.id == agent_id]

    def _has(self, facts: AgentFacts) -> bool:
        return self.ref is None or facts.workspace_id == self.ref.id

    def agent_status(self) -> AgentStatus | None:
        """Return whether the chosen agent is connected; None if none is chosen."""
        if self.chosen is None:
            return None
        facts = self.facts_of(self.chosen.id)
        if facts is None or facts.connected is None:
            overdue = STATE_INFO[self.state].overdue
            return "timeout" if overdue else "connecting"
        return "connected" if facts.connected else "disconnected"

    def agent_lifecycle(self) -> Lifecycle | None:
        """Return the latest lifecycle of the chosen agent."""
        facts = None if self.chosen is None else self.facts_of(self.chosen.id)
        return None if facts is None else facts.lifecycle


def chat_from_json(text: str | bytes) -> Chat:
    """Read a stored snapshot. Raises ValueError for one that is damaged."""
    return Chat.model_validate_json(text)


def chat_to_json(chat: Chat) -> str:
    """Return a snapshot as it is stored: JSON without the fields that have their default."""
    return chat.model_dump_json(exclude_defaults=True)
