"""The snapshot of one chat: its state, and everything known about its workspaces and their agents.

Facts that came early are kept here until they matter, so folding facts in any order gives the same snapshot.
`fold` puts facts in, `machine` moves the state.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from statemachine import events
from statemachine.events import Lifecycle
from statemachine.states import STATE_INFO, AgentStatus, FailureReason, Limit, Phase, State
from statemachine.workspace import (
    Build,
    BuiltAgent,
    Unselectable,
    Value,
    WorkspaceRecord,
    choose_agent,
)

STARTUP: Final = frozenset(
    (
        Lifecycle.CREATED,
        Lifecycle.STARTING,
        Lifecycle.START_TIMEOUT,
        Lifecycle.START_ERROR,
        Lifecycle.READY,
    )
)
"""The lifecycles that describe the start of an agent. The others describe its shutdown."""
UNSETTLED: Final = frozenset((Lifecycle.CREATED, Lifecycle.STARTING))

LONGEST_REASON: Final = 4096
"""Bytes of the text that says why an agent is gone."""
MAX_AGENTS: Final = 1024
"""Agents that a chat remembers: those of its builds, of builds not reported yet, and of other workspaces."""
MAX_REJECTED: Final = 16
"""Rejected facts that a chat remembers."""
MAX_BEFORE_DELETE: Final = 16
"""Stops and deletes before a delete that a workspace's record holds."""
MAX_CANCELED: Final = 16
"""Superseded builds that a workspace's record holds because they were canceled and have not ended."""
MAX_PREVIOUS: Final = 64
"""Previous workspaces that a chat remembers, and superseded builds of the current one."""

BUILD_ENDS: Final = frozenset(
    model.name for model in (events.BuildSucceeded, events.BuildFailed, events.BuildCanceled)
)
"""The types of a build's terminal facts."""
PROVISIONER_FACTS: Final = frozenset(
    model.name  # type: ignore[attr-defined]
    for model in events.BY_KIND["provisioner"]
)


class Limits(NamedTuple):
    """The time limits of states, and of orphans."""

    build: timedelta = timedelta(minutes=10)
    agent_connect: timedelta = timedelta(minutes=2)
    startup_scripts: timedelta = timedelta(minutes=10)
    cancel: timedelta = timedelta(seconds=60)
    """The time that a provisioner has to end a canceled build."""
    orphan_grace: timedelta = timedelta(minutes=15)
    """The time that an orphan may run. It limits no state."""

    def of(self, limit: Limit) -> timedelta:
        """Return the value of `limit`."""
        return getattr(self, limit)  # type: ignore[no-any-return]


class AgentExit(Value, frozen=True):
    """The end of an agent's process or container, as its provisioner reported it."""

    exit_code: int | None = None
    signal: str | None = None
    output: str | None = None

    def shown(self) -> str:
        """Return it as text for people, at most `LONGEST_REASON` bytes: the beginning of the output is cut."""
        how = [] if self.exit_code is None else [f"exit code {self.exit_code}"]
        how += [] if self.signal is None else [f"signal {self.signal.removeprefix('SIG')[:64]}"]
        text = ", ".join(how) or "its process is gone"
        if not self.output:
            return text
        head = f"{text}; its last output: "
        room = LONGEST_REASON - len(head.encode())
        return head + self.output.encode()[-room:].decode(errors="ignore")


class AgentFacts(Value, frozen=True, forbid_unknown_fields=True):
    """The reports of one agent, merged. Each field has the value of the report with the highest sequence.

    The exception is an agent whose loss workers noticed. Its next report undoes the loss, even with a lower
    sequence, and sequences are compared from that report on. Values last until a later report changes them.
    """

    id: str
    workspace_id: str
    build_id: str
    highest_sequence: int = -1
    connection_sequence: int = -1
    reported_connected: bool | None = None
    """Whether the agent is connected according to its own reports; None before the first of them."""
    ever_connected: bool = False
    """Whether the agent has reported `agent_connected` at some time."""
    lifecycle_sequence: int = -1
    lifecycle: Lifecycle | None = None
    ever_started: bool = False
    """Whether the agent has reported a lifecycle other than `created` at some time."""
    startup_sequence: int = -1
    startup: Lifecycle | None = None
    activity_sequence: int = -1
    """The sequence of the last report of activity that counted."""
    lost_at: int | None = None
    """The value of `highest_sequence` when workers noticed the loss; None when the agent is not lost."""
    loss_reason: str | None = None
    """Why workers count the agent as lost."""
    disconnect_reason: str | None = None
    """The reason of the report by which the agent is disconnected."""
    exit: AgentExit | None = None
    """The last report that its process is gone."""

    def after(self, fact: events.AgentFact | events.AgentExited) -> AgentFacts:
        """Return the value with `fact` folded in."""
        if isinstance(fact, events.AgentExited):
            code, signal, output = fact.exit_code, fact.signal, fact.output
            return replace(self, exit=AgentExit(exit_code=code, signal=signal, output=output))
        if fact.sequence is None:  # workers recorded this fact: the agent is lost
            reason = fact.reason if isinstance(fact, events.AgentDisconnected) else None
            return replace(self, lost_at=self.highest_sequence, loss_reason=reason)
        if self.lost_at is not None:
            return self._found_again(fact.sequence).after(fact)
        newest = fact.sequence > self.connection_sequence
        new = replace(self, highest_sequence=max(self.highest_sequence, fact.sequence))
        if isinstance(fact, events.AgentLifecycle):
            return _with_lifecycle(new, fact, newest=newest)
        connected = isinstance(fact, events.AgentConnected)
        if connected:
            new = replace(new, ever_connected=True)
        if newest:
            reason = fact.reason if isinstance(fact, events.AgentDisconnected) else None
            new = replace(
                new,
                connection_sequence=fact.sequence,
                reported_connected=connected,
                disconnect_reason=reason,
            )
        return new

    def _found_again(self, sequence: int) -> AgentFacts:
        """Undo the loss. A lower sequence shows that the agent was restored, or lost its count."""
        if self.lost_at is not None and sequence > self.lost_at:
            return replace(self, lost_at=None, loss_reason=None)
        return replace(
            self,
            lost_at=None,
            loss_reason=None,
            highest_sequence=-1,
            connection_sequence=-1,
            lifecycle_sequence=-1,
            startup_sequence=-1,
            activity_sequence=-1,
        )

    @property
    def connected(self) -> bool | None:
        """Whether the agent is connected; None before its first report about that."""
        if self.lost_at is not None or self.exited_unseen:
            return False
        return self.reported_connected

    @property
    def ever_present(self) -> bool:
        """Whether it has connected at some time. A lifecycle beyond `created` shows that too."""
        return self.ever_connected or self.ever_started

    @property
    def exited_unseen(self) -> bool:
        """Whether its process is gone, and it has never connected."""
        return self.exit is not None and not self.ever_present

    @property
    def gone_because(self) -> str | None:
        """Why it is not connected; None if it is, or if the reason is not known."""
        if self.connected is not False:
            return None
        if self.exit is not None:
            return self.exit.shown()
        return self.disconnect_reason if self.lost_at is None else self.loss_reason

    @property
    def start_ended(self) -> bool:
        """Whether its start has ended, successfully or not."""
        return self.lifecycle is not None and self.lifecycle not in UNSETTLED


def _with_lifecycle(facts: AgentFacts, fact: events.AgentLifecycle, *, newest: bool) -> AgentFacts:
    new = facts
    if fact.lifecycle is not Lifecycle.CREATED:
        new = replace(new, ever_started=True)
        if newest:  # an agent that reports is connected
            new = replace(
                new,
                connection_sequence=fact.sequence,
                reported_connected=True,
                disconnect_reason=None,
            )
    if fact.sequence > facts.lifecycle_sequence:
        new = replace(new, lifecycle_sequence=fact.sequence, lifecycle=fact.lifecycle)
    if fact.lifecycle in STARTUP and fact.sequence > facts.startup_sequence:
        new = replace(new, startup_sequence=fact.sequence, startup=fact.lifecycle)
    return new


def never_present(agent: BuiltAgent | None, facts: AgentFacts | None) -> str:
    """Return the message for a chosen agent that has never connected; `facts` are its reports, if there are any."""
    name = f" '{agent.name}'" if agent else ""
    if facts is not None and facts.exited_unseen:
        return (
            f"the workspace was built, but its agent{name} ended before it connected: "
            f"{facts.gone_because}"
        )
    return f"the workspace was built, but its agent{name} did not connect in time"


class Failure(Value, frozen=True):
    """The reason for the state `failed`, with a message."""

    reason: FailureReason
    message: str
    error_code: str | None = None


class Rejection(Value, frozen=True):
    """A fact about a build that could not be accepted."""

    build_id: str
    fact: str
    """The type's name, for example `build_failed`; empty if it could not be read."""
    detail: str
    pool: str | None = None
    """The pool that the sender is bound to; then the rejection counts for builds of that pool only."""

    @property
    def is_end(self) -> bool:
        """Whether the rejected fact was the end of the build."""
        return self.fact in BUILD_ENDS

    def concerns(self, build: Build) -> bool:
        """Return whether the rejection is about `build` and still matters.

        It does not if its sender is bound to the pool of another build, or if a provisioner sent the fact
        and the end of the build is known by now.
        """
        if build.id != self.build_id or (build.outcome and self.fact in PROVISIONER_FACTS):
            return False
        return None in (self.pool, build.template) or (
            build.template is not None and build.template.pool == self.pool
        )


class Cause(Value, frozen=True):
    """The event that made the present version."""

    source: str
    id: str
    type: str


JOINED_STATES: Final = frozenset(
    state
    for state, info in STATE_INFO.items()
    if info.phase in (Phase.BEING_BUILT, Phase.BEING_STOPPED) and not info.settled
)
"""The states in which a build is running, so that new calls only join it."""


class Chat(Value, frozen=True, forbid_unknown_fields=True):
    """The snapshot of one chat after `version` moves."""

    chat_id: str
    version: int = 0
    seq: int = 0
    """Entries of the chat's event log."""
    state: State = State.NONE
    previous_state: State = State.NONE
    organization_id: str | None = None
    owner_id: str | None = None
    owner_name: str | None = None
    current: WorkspaceRecord | None = None
    """The workspace that the chat has."""
    previous: tuple[WorkspaceRecord, ...] = ()
    """Other workspaces: those that the chat had, and those that provisioners reported for it."""
    agents: tuple[AgentFacts, ...] = ()
    """The reports of the agents of all these workspaces."""
    failure: Failure | None = None
    deadline: datetime | None = None
    generation: int = 0
    """Counts deadlines, so that a `deadline_passed` names the one that passed."""
    cause: Cause | None = None
    latest_build: str | None = None
    """The id of the build that was followed last, also after its workspace is gone."""
    deleted_builds: tuple[str, ...] = ()
    """Builds of a deleted workspace that the current one replaced at once, the newest last.

    A call that waited for one of them gets no answer about the current workspace.
    """
    rejected: tuple[Rejection, ...] = ()
    """Facts that could not be accepted about the current workspace's builds, and about unknown builds."""
    open_calls: int = 0
    changed_at: datetime | None = None

    @property
    def build(self) -> Build | None:
        """The followed build: the newest one of the current workspace."""
        return None if self.current is None else self.current.build

    @property
    def build_in_flight(self) -> Build | None:
        """The followed build if it has not ended, and workers have not canceled it themselves."""
        open_ = STATE_INFO[self.state].phase in (Phase.BEING_BUILT, Phase.BEING_STOPPED)
        return self.build if open_ and self.build and self.build.outcome is None else None

    @property
    def start_build(self) -> Build | None:
        """The newest start build of the current workspace."""
        return None if self.current is None else self.current.start_build

    @property
    def expires_at(self) -> datetime | None:
        """When a timer has to stop the workspace: at `stops_at`, unless an earlier version has tried it already."""
        start = self.start_build
        return None if start is not None and start.expired else self.stops_at

    @property
    def stops_at(self) -> datetime | None:
        """When workers stop the current workspace if nobody uses it; None while it does not run or has no lifetime.

        A stop that ran out of time may have left the workspace running, like one that failed.
        """
        current, info = self.current, STATE_INFO[self.state]
        if current is None:
            return None
        given_up = Phase.FAILED_STOP in (info.phase, info.end_rejected)
        if given_up and current.phase_left is Phase.FAILED_DELETE:
            return None
        return current.stops_at(given_up=given_up)

    @property
    def phase(self) -> Phase:
        """The phase by which the tool rules answer calls.

        After a failed stop or delete, the builds tell what is left of the workspace.
        """
        phase = self._phase_of_state
        if phase is Phase.FAILED_STOP:
            return Phase.FAILED_BUILD if self.current is None else self.current.phase_left
        return phase

    @property
    def _phase_of_state(self) -> Phase:
        """The phase of the state.

        If the build has timed out and the fact of its end was rejected, that fact counts, because no other one
        will come.
        """
        info = STATE_INFO[self.state]
        if info.end_rejected is not None and (rejection := self.rejection) and rejection.is_end:
            return info.end_rejected
        return info.phase

    @property
    def usable(self) -> bool:
        """Whether a call may get the running workspace as it is, instead of a new one.

        That is so if its agent is connected or may still connect, or if it has no agents or none that can
        be chosen.
        """
        build = self.start_build
        if build is None or build.outcome is None:
            return False
        if not build.outcome.agents:
            return True
        chosen = choose_agent(build.outcome.agents)
        if isinstance(chosen, Unselectable):
            return True
        facts = self.agent_facts(chosen.id)
        if facts is None or facts.connected is None:
            return STATE_INFO[self.state].limit is Limit.AGENT_CONNECT
        return facts.connected

    @property
    def calls_only_join(self) -> bool:
        """Whether a new call can only wait or be answered at once, because a build is running.

        Then the calls that wait already need not be evaluated with it.
        """
        return self.state in JOINED_STATES

    @property
    def rejection(self) -> Rejection | None:
        """The rejected fact about the followed build that still matters, preferably its end."""
        build = self.build
        if build is None or not self.rejected:
            return None
        found = [rejection for rejection in self.rejected if rejection.concerns(build)]
        return next((r for r in found if r.is_end), found[-1] if found else None)

    @property
    def orphans(self) -> tuple[WorkspaceRecord, ...]:
        """The previous workspaces that run although no chat has them."""
        if not self.previous:  # the usual case, and this is asked several times for each event
            return ()
        return tuple(record for record in self.previous if record.orphaned_at is not None)

    def previous_workspace(self, workspace_id: str) -> WorkspaceRecord | None:
        """Return the record of a workspace that is not the chat's current one, or None."""
        return next((record for record in self.previous if record.id == workspace_id), None)

    def expects_end_of(self, build_id: str) -> bool:
        """Return whether the chat needs the end of that build and does not know it yet."""
        builds = (self.build, *(record.build for record in self.previous))
        return any(b is not None and b.id == build_id and b.outcome is None for b in builds)

    def may_begin(self, build_id: str) -> bool:
        """Return whether a provisioner may still be needed to begin that build: then its job may be published."""
        found = next((build for build in self.builds() if build.id == build_id), None)
        return self.expects_end_of(build_id) and not (found and found.canceled_unbegun)

    def builds(self) -> list[Build]:
        """Return the newest builds and newest starts of all workspaces, the current one's first."""
        records = self.previous if self.current is None else (self.current, *self.previous)
        return [b for record in records for b in (record.build, record.last_start) if b is not None]

    def workspace_of(self, build_id: str) -> str | None:
        """Return the id of the workspace that a build belongs to; None if the build is not remembered."""
        records = self.previous if self.current is None else (self.current, *self.previous)
        for record in records:
            builds = (record.build, record.last_start, *record.before_delete)
            if build_id in record.superseded or any(b and b.id == build_id for b in builds):
                return record.id
        return None

    @property
    def chosen(self) -> BuiltAgent | None:
        """The agent that was chosen for the chat."""
        return None if self.current is None else self.current.chosen

    def agent_facts(self, agent_id: str) -> AgentFacts | None:
        """Return the reports of an agent of the current workspace, or of any workspace if there is none."""
        current = self.current
        for facts in self.agents:
            if facts.id == agent_id and (current is None or facts.workspace_id == current.id):
                return facts
        return None

    def agent_facts_of_any_workspace(self, agent_id: str) -> AgentFacts | None:
        """Return the reports of an agent, preferably one of the current workspace."""
        found = self.agent_facts(agent_id)
        return found or next((facts for facts in self.agents if facts.id == agent_id), None)

    def agent_status(self) -> AgentStatus | None:
        """Return whether the chosen agent is connected; None if none is chosen."""
        chosen = self.chosen
        if chosen is None:
            return None
        facts = self.agent_facts(chosen.id)
        if facts is None or facts.connected is None:
            return "timeout" if STATE_INFO[self.state].overdue else "connecting"
        return "connected" if facts.connected else "disconnected"

    def agent_reason(self) -> str | None:
        """Return why the chosen agent is not connected any more; None if it is, or nobody said why."""
        facts = None if self.chosen is None else self.agent_facts(self.chosen.id)
        return None if facts is None else facts.gone_because

    def agent_lifecycle(self) -> Lifecycle | None:
        """Return the latest lifecycle of the chosen agent."""
        facts = None if self.chosen is None else self.agent_facts(self.chosen.id)
        return None if facts is None else facts.lifecycle


_DECODER: Final = msgspec.json.Decoder(Chat)
_ENCODER: Final = msgspec.json.Encoder()


def chat_to_json(chat: Chat) -> str:
    """Return a snapshot as it is stored: JSON without the fields that have their default."""
    return _ENCODER.encode(chat).decode()


def chat_from_json(text: str) -> Chat:
    """Read a stored snapshot, also one of an earlier version. Raises ValueError for a damaged one."""
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError:
        pass  # another version stored it, with fields that this version does not know
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    stored = json.loads(text)
    try:
        return msgspec.convert(_known_fields(stored), Chat)
    except (AttributeError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"the snapshot is damaged: {error}") from error


def _known_fields(stored: dict[str, Any]) -> dict[str, Any]:
    """Convert a snapshot that another version stored: rename old fields, and drop unknown ones.

    Earlier versions kept the fields of the current workspace in the chat itself, its names in `ref`, the
    previous workspaces in `former`, and the superseded builds in `past`.
    """
    if (ref := stored.get("ref")) is not None:
        of_workspace = {key: stored[key] for key in _FLAT_FIELDS if stored.get(key) is not None}
        stored["current"] = {**ref, **of_workspace, "superseded": stored.get("past", ())}
    if stored.get("former"):
        stored["previous"] = [
            {**(record.get("ref") or {}), **record, "grace_over": record.get("overdue", False)}
            for record in stored["former"]
        ]
    if stored.get("agents"):
        stored["agents"] = [
            {
                name: value
                for key, value in facts.items()
                if (name := _RENAMED_AGENT_FIELDS.get(key, key)) in AgentFacts.__struct_fields__
            }
            for facts in stored["agents"]
        ]
    for workspace in (stored.get("current"), *stored.get("previous", ())):
        for key in ("build", "last_start"):
            if workspace and workspace.get(key):
                workspace[key] = _known_build_fields(workspace[key])
        for key in ("before_delete", "canceled"):
            if workspace and workspace.get(key):
                workspace[key] = list(map(_known_build_fields, workspace[key]))
    return {key: value for key, value in stored.items() if key in Chat.__struct_fields__}


def _known_build_fields(build: dict[str, Any]) -> dict[str, Any]:
    """Convert a build that another version stored. Earlier ones stored that it had begun, but not when."""
    known = {key: value for key, value in build.items() if key in Build.__struct_fields__}
    if build.get("taken") and "begun_at" not in known:
        known["begun_at"] = build["started_at"]
    return known


_FLAT_FIELDS: Final = ("build", "last_start", "before_delete", "chosen")
"""Fields of `WorkspaceRecord` that earlier versions kept in the chat."""

_RENAMED_AGENT_FIELDS: Final = {
    "highest": "highest_sequence",
    "told": "reported_connected",
    "seen": "ever_connected",
    "begun": "ever_started",
}
"""Fields of `AgentFacts` as earlier versions named them -> their present names."""
