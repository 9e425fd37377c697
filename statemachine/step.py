"""step: everything that inputs do to one chat and its calls. Pure, synchronous, total.

A worker loads a chat (`Loaded`), calls `step` with the inputs that arrived for it, writes the
`Step`, and publishes its effects. For each input, `step` does these things in this order:

1. Decide. `machine.decide` folds the event into the snapshot and moves the state by the table. Each
   version becomes a `PublishState`; each event becomes an `Entry` of the chat's event log.
2. Evaluate. A tool call, a request to delete, or a timer whose time has come goes to the rules
   (`tool_rules`). They may answer the call, let it wait, or derive an event of workspaced itself,
   such as `build_requested`. A derived event is decided like every other event, and a requested
   build becomes a `PublishJob`.
3. Settle. If the chat has a new version, the waiting calls are evaluated in the order of their
   requests, again from the first whenever one of them moves the chat. A call that is answered
   becomes a `PublishAnswer`.

After the last input, `Step.alarms` gets a time for each timer that the chat needs and did not need before.
docs/contract.md, section 5, is the specification.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from statemachine import events, lifetimes, redaction, timers, tool_rules
from statemachine.arguments import content_digest
from statemachine.calls import (
    Answered,
    Call,
    Known,
    Requested,
    Resumed,
    StoredCall,
    Waiting,
)
from statemachine.chat import Cause, Chat, Limits
from statemachine.events import OURS, BuildRequested, Event, OwnEvent, Retried, Transition
from statemachine.fold import Unmoved, newly_deleted, newly_named
from statemachine.machine import Decision, Ignored, Moved, cause_of, decide, foreign_pool
from statemachine.replay import entry_of, set_deadline
from statemachine.requests import fresh_id
from statemachine.templates import Version
from statemachine.timers import TimerKind
from statemachine.views import state_changed
from statemachine.workspace import WorkspaceRecord

# -- inputs ---------------------------------------------------------------------------------------


class InboundEvent(Struct, frozen=True):
    """A request or a fact that arrived over the bus."""

    event: Event
    digest: bytes
    """Identifies the event: see `events.event_digest`."""
    redelivered: bool = True
    """Whether a worker may have received this very message before, and not published what followed from it."""

    @property
    def chat_id(self) -> str:
        """The chat that the event concerns."""
        return self.event.chat_id


class AlarmRang(Struct, frozen=True):
    """The time of some alarms of the chat has come. Those of its timers that are due take effect."""

    chat_id: str
    at: tuple[datetime, ...]
    """The times of these alarms."""
    handled: bool = False
    """Whether one of them was handled before, and what followed from it may not be published."""


class PresenceExpired(Struct, frozen=True):
    """An agent's presence message expired.

    The agent is lost if it counts as connected and has reported nothing since the worker looked
    for its presence message.
    """

    chat_id: str
    agent_id: str
    highest_sequence: int | None = None
    """The agent's highest sequence before the worker found that it has no presence message.

    None if the worker has not looked yet, or if there is no loss to record.
    """


class PublishedState(Struct, frozen=True):
    """A published state, to compare with the snapshot after a restore of the database."""

    chat_id: str
    state: Mapping[str, Any]
    """The data of state_changed."""

    @property
    def version(self) -> int:
        """The version of the published state."""
        return int(self.state["version"])


class FactNotice(Struct, frozen=True):
    """A fact about one of the chat's builds that was not accepted and became a dead letter."""

    chat_id: str
    sender: str
    """The sender's name in the subject. NATS ensures that it is right."""
    fact: events.FactRejected
    pool: str | None = None
    """The pool to which the sender's credential is bound; None if it is not bound."""


Input = InboundEvent | AlarmRang | PresenceExpired | PublishedState | FactNotice


# -- what the store knows before, and what a step yields ------------------------------------------


class Loaded(Struct, frozen=True):
    """A chat, with those of its rows that the inputs concern."""

    chat: Chat
    open: Mapping[str, Call] = {}
    """The waiting calls by id, in the order of their requests. They may be missing if no input can
    end a wait."""
    calls: Mapping[str, StoredCall] = {}
    """Those of the calls that the inputs name which are stored, by id."""
    canceled: AbstractSet[str] = frozenset()
    """The ids of the calls that were canceled before they arrived."""
    applied: AbstractSet[bytes] = frozenset()
    """The digests of the inputs' events that were applied before."""


class Entry(Struct, frozen=True):
    """A new entry of a chat's event log."""

    seq: int
    event: Event
    outcome: str
    state_before: str
    state_after: str
    version: int | None
    at: datetime
    cause: Cause | None = None
    """The event that led to this one; None for events that came over the bus."""
    deadline: datetime | None = None
    """The limit of the new state, if this event set one."""


class PublishState(Struct, frozen=True):
    """Publish one version of the chat."""

    chat: Chat
    because: Event | None


class PublishJob(Struct, frozen=True):
    """Request a build from the provisioners of its pool."""

    chat: Chat
    build: BuildRequested
    version: Version
    not_after: datetime
    because: Event


class PublishAnswer(Struct, frozen=True):
    """Publish the answer of a call, once for each event that causes it."""

    call: Call
    answer: Answered
    because: Event


class ExpectPresence(Struct, frozen=True):
    """Publish a presence message for an agent whose loss was undone.

    The fact that undid the loss may have been delayed. If the agent is still absent, the presence
    message expires, and workers notice the loss again.
    """

    agent_id: str
    because: Event


class PublishCancel(Struct, frozen=True):
    """Tell the provisioners of a pool that a build was canceled."""

    workspace_id: str
    build_id: str
    pool: str
    because: Event | None


Effect = PublishState | PublishJob | PublishAnswer | ExpectPresence | PublishCancel


class WorkspaceName(NamedTuple):
    """The name of a new workspace."""

    workspace_id: str
    chat_id: str
    owner_id: str
    name: str
    requested: bool = False
    """Whether the rules chose it, so that no other workspace of the owner has it."""


class Notice(Struct, frozen=True):
    """A message for operators, to be logged after the commit."""

    level: int
    text: str
    ids: Mapping[str, object]


class Step(Struct):
    """The result of inputs for one chat: what to write, and what to publish afterwards."""

    chat: Chat
    """The snapshot after the inputs."""
    open: dict[str, Call]
    """The waiting calls after the inputs."""
    at: datetime
    entries: list[Entry] = []
    identities: set[bytes] = set()
    """The digests of the events that were applied now."""
    calls: dict[str, StoredCall] = {}
    """The calls that are new or changed, by id."""
    canceled: set[str] = set()
    """The ids of calls that were canceled before they arrived."""
    named: list[WorkspaceName] = []
    deleted: list[str] = []
    """The ids of the workspaces that were deleted, so that their names may be used again."""
    effects: list[Effect] = []
    """The messages to publish after the commit."""
    notices: list[Notice] = []
    alarms: set[datetime] = set()
    """When the chat has to be looked at, because a timer may be due."""
    rang: list[datetime] = []
    """The times of the alarms that rang."""
    repeats: bool = False
    """Whether an input may have been committed before, and what followed from it not published."""
    late: timedelta = timedelta(0)
    """The longest delay of the timers that took effect."""
    unneeded_jobs: set[str] = set()
    """The ids of builds that were canceled before they began, so that nobody needs their jobs."""
    foreign: int = 0
    """The number of facts from provisioners of another pool than that of the workspace."""


def step(
    loaded: Loaded, inputs: Sequence[Input], known: Known, limits: Limits, at: datetime
) -> Step:
    """Return what `inputs`, in their order, do to a chat and its calls.

    `known` is everything else that the tool rules may use; its seed must be another one for each
    step, because new ids are made of it. `at` is the time of the decisions: limits count from it.
    """
    stepping = _Stepping(loaded, known, limits, at)
    for item in inputs:
        stepping.take(item)
    stepping.close()
    return stepping.step


def canceled_builds(chat: Chat, because: Event | None = None) -> list[PublishCancel]:
    """Return messages about the chat's canceled builds whose end is not known, as far as their pool is known."""
    records = chat.previous if chat.current is None else (chat.current, *chat.previous)
    found = {
        build.id: PublishCancel(record.id, build.id, build.pool, because)
        for record in records
        for build in (record.build, record.last_start, *record.canceled)
        if build is not None and build.being_canceled and build.pool is not None
    }
    return list(found.values())


def differs_from_published(chat: Chat, published: PublishedState) -> bool:
    """Return whether the snapshot is older than a published state: a restore set it back.

    Keys that only one of them has are ignored: another version of this program published the state.
    """
    if published.version != chat.version:
        return published.version > chat.version
    kept = json.loads(json.dumps(state_changed(chat)))
    return any(published.state[key] != kept[key] for key in kept.keys() & published.state.keys())


class _Stepping:
    """The step while it is being made."""

    def __init__(self, loaded: Loaded, known: Known, limits: Limits, at: datetime) -> None:
        self._before, self._known, self._limits, self._at = loaded, known, limits, at
        self.step = Step(loaded.chat, dict(loaded.open), at)
        self._own_events = 0

    @property
    def _chat(self) -> Chat:
        return self.step.chat

    # -- inputs -----------------------------------------------------------------------------------

    def take(self, item: Input) -> None:
        """Apply one input."""
        match item:
            case InboundEvent(event=event, digest=digest):
                self.step.repeats |= item.redelivered and digest in self._before.applied
                self._receive(redaction.fact(event, self._chat, self._known), digest)
            case AlarmRang():
                self.step.rang += item.at
                self.step.repeats |= item.handled
                for purpose in timers.KINDS:
                    due = timers.due_at(self._chat, purpose, self._limits)
                    if due is not None and due <= self._at:
                        self._fire(purpose, due)
                self._end_rests()
            case PresenceExpired():
                self._lose(item)
            case PublishedState():
                self.step.repeats |= self._chat.version > item.version
                if differs_from_published(self._chat, item):
                    version = item.version
                    self._apply(self._own(events.DatabaseRestored(published_version=version)))
            case FactNotice():
                notice = f"it is a dead letter: {item.fact.detail}"
                event = self._own(item.fact)
                self._apply(event.model_copy(update={"pool": item.pool, "notice": notice}))

    def _counts(self, activity: events.AgentActivity) -> bool:
        """Return whether a report of activity puts the end of the lifetime off. Others leave no trace."""
        return lifetimes.active(self._chat, activity, self._at) is not None

    def _receive(self, event: Event, digest: bytes) -> None:
        if isinstance(event.data, events.AgentActivity) and not self._counts(event.data):
            return
        self._report_foreign(event)
        if digest in self._before.applied or digest in self.step.identities:
            again = Ignored(self._chat, Unmoved.REPEAT)
            self._record(event, entry_of(self._chat, again))
            self._answer_again(event)
            self._publish_cancel(event)
            return
        self.step.repeats |= self._undoes_loss(event)
        self.step.identities.add(digest)
        version = self._chat.version
        self._decide(event, event)
        match event.data:
            case events.ToolRequested():
                self._request(event, event.data)
            case events.ToolCanceled(call_id=call_id):
                self._cancel(event, call_id)
            case events.DeleteRequested(workspace_id=workspace_id):
                self._delete(event, workspace_id)
            case _:
                pass
        if self._chat.version != version:  # without a new version, no wait can end
            self._settle(event)

    def _undoes_loss(self, event: Event) -> bool:
        """Return whether the event comes from an agent that counts as lost.

        Its new presence message replaced the mark of its absence, which NATS then does not deliver again.
        """
        if not isinstance(event.data, events.AgentFact):
            return False
        facts = self._chat.agent_facts_of_any_workspace(event.data.agent_id)
        return facts is not None and facts.lost_at is not None

    def _report_foreign(self, event: Event) -> None:
        """Report a fact about a workspace of another pool. It has no effect."""
        pool = foreign_pool(self._chat, event)
        if pool is None:
            return
        self.step.foreign += 1
        self._notice(
            logging.WARNING,
            f"{event.source} of pool {event.pool} reports {event.type} about a workspace of pool {pool}",
            event_id=event.id,
        )

    def _delete(self, event: Event, workspace_id: str | None) -> None:
        previous = self._chat.previous_workspace(workspace_id) if workspace_id else None
        if previous is not None:
            self._delete_previous(previous, event)
            return
        if workspace_id is not None and (
            self._chat.current is None or self._chat.current.id != workspace_id
        ):
            return
        verdict = tool_rules.deletion(self._chat, self._known, event.id)
        if verdict is not None:
            self._derive(verdict, event)
        elif self._chat.current is not None and not self._chat.calls_only_join:
            self._notice(
                logging.ERROR,
                "the template of its workspace is not stored here, so it cannot be deleted",
            )

    def _delete_previous(self, record: WorkspaceRecord, event: Event) -> None:
        build = record.build
        if build is None or record.deleted:
            return
        if build.transition is Transition.DELETE and build.outcome is None and not record.retry:
            return  # it is being deleted
        delete = tool_rules.unrequested(
            self._chat, record, Transition.DELETE, self._known, event.id
        )
        if delete is not None:
            self._derive(delete, event)
            return
        self._notice(logging.ERROR, f"nobody here can delete workspace {record.id}")

    def _fire(self, purpose: TimerKind, due: datetime) -> None:
        """Apply a timer that is due."""
        self.step.late = max(self.step.late, self._at - due)
        match purpose:
            case TimerKind.DEADLINE:
                self._apply(self._own(events.DeadlinePassed(generation=self._chat.generation)))
            case TimerKind.TTL:
                self._expire()
            case TimerKind.ORPHAN:
                self._stop_orphans()
            case TimerKind.RETRY:
                self._try_again()

    def _expire(self) -> None:
        build = self._chat.build
        if build is None:
            return
        current = self._chat.current
        label = self._next_label()
        stop = tool_rules.expiry(self._chat, self._known, label)
        passed = events.TtlPassed(
            build_id=build.id,
            workspace_id=current.id if current else None,
            possible=stop is not None,
        )
        self._carry_out(passed, stop, "nobody here can stop its workspace after its lifetime")

    def _try_again(self) -> None:
        """Request stops and deletes again that failed, and note those of replaced workspaces that take too long."""
        for record in timers.overdue_builds(self._chat, self._at, self._limits):
            build = record.build
            if build is None:
                continue
            self._apply(self._own(events.BuildOverdue(workspace_id=record.id, build_id=build.id)))
            self._notice(
                logging.ERROR,
                f"the {build.transition} build {build.id} of its replaced workspace {record.id} did not end in time",
                build_id=build.id,
            )
        for record in timers.retries_due(self._chat, self._at):
            build, retry = record.build, record.retry
            if build is None or retry is None:
                continue
            label = self._next_label()
            again = tool_rules.unrequested(self._chat, record, retry.transition, self._known, label)
            rests = record is self._chat.current and build.retried is Retried.ALWAYS
            made = events.RetentionPassed if rests else events.RetryDue
            due = made(workspace_id=record.id, build_id=build.id, possible=again is not None)
            self._carry_out(due, again, f"nobody here can {retry.transition} workspace {record.id}")

    def _end_rests(self) -> None:
        """Delete the workspaces that have rested for as long as the setting says."""
        retention_ms = self._known.policy.retention_ms
        if retention_ms is None:
            return
        latest = self._at - timedelta(milliseconds=retention_ms)
        for record, since in tuple(lifetimes.resting(self._chat)):
            if record.build is None or since > latest:
                continue
            label = self._next_label()
            delete = tool_rules.unrequested(
                self._chat, record, Transition.DELETE, self._known, label
            )
            passed = events.RetentionPassed(
                workspace_id=record.id, build_id=record.build.id, possible=delete is not None
            )
            self._carry_out(passed, delete, f"nobody here can delete workspace {record.id}")

    def _carry_out(
        self,
        due: events.TtlPassed | events.RetentionPassed | events.RetryDue,
        build: BuildRequested | None,
        problem: str,
    ) -> None:
        """Apply an event that a time has come, and request the build that follows; report if there is none."""
        event = self._own(due)
        self._apply(event)
        if build is None:
            self._notice(logging.ERROR, f"{problem}: its template is not stored here")
            return
        self._derive(build, event)
        self._settle(event)

    def _next_label(self) -> str:
        """Return a text from which the ids of a build are derived that no call requests."""
        return fresh_id(self._known.seed, f"build {self._own_events}")

    def _stop_orphans(self) -> None:
        for orphan in timers.overdue(self._chat, self._at, self._limits):
            event = self._own(events.OrphanGracePassed(workspace_id=orphan.id))
            stop = tool_rules.orphan(self._chat, self._known, orphan.id, event.id)
            self._apply(event)
            if stop is not None:
                self._derive(stop, event)
                self._settle(event)
            elif orphan.id not in self._known.had:
                self._notice(
                    logging.ERROR, f"nobody here can stop workspace {orphan.id}, which no chat has"
                )

    def _lose(self, expired: PresenceExpired) -> None:
        facts = self._chat.agent_facts_of_any_workspace(expired.agent_id)
        if facts is None:
            return
        if not facts.connected or facts.highest_sequence != expired.highest_sequence:
            self.step.repeats |= facts.lost_at is not None
            return
        lost = events.AgentDisconnected(
            workspace_id=facts.workspace_id,
            build_id=facts.build_id,
            agent_id=expired.agent_id,
            sequence=None,
            reason="no sign of life",
        )
        self._apply(self._own(lost))

    def close(self) -> None:
        """Set alarms for the timers that the chat needs now, and report its new orphans."""
        before, chat = self._before.chat, self._chat
        if needed := timers.timers_of(chat, self._limits):
            had = timers.timers_of(before, self._limits)
            self.step.alarms = {
                timers.alarm_time(due, self._at)
                for purpose, due in needed.items()
                if had.get(purpose) != due or (self.step.rang and due > self._at)
            }
        if (current := chat.current) is not None and (retry := current.retry) is not None:
            had_current = before.current
            earlier = had_current.retry if had_current and had_current.id == current.id else None
            if retry.at is not None and retry != earlier:
                self._notice(
                    logging.ERROR,
                    f"the {retry.transition} of its workspace {current.id} has not succeeded "
                    f"({retry.count} so far); the next one is requested at {retry.at.isoformat(' ', 'seconds')}",
                )
        known = {orphan.id for orphan in before.orphans}
        for orphan in chat.orphans:
            build = orphan.build
            if orphan.id in known or build is None:
                continue
            outcome = build.outcome
            ending = outcome.ending if outcome else "was the last"
            error = f": {outcome.error}" if outcome and outcome.error else ""
            deleted = build.transition is Transition.DELETE
            self._notice(
                logging.ERROR,
                f"workspace {orphan.id} {'is left' if deleted else 'runs on'} though no chat has it: "
                f"its {build.transition} build {build.id} {ending}{error}",
                build_id=build.id,
            )

    # -- calls ------------------------------------------------------------------------------------

    def _request(self, event: Event, asked: events.ToolRequested) -> None:
        digest = content_digest(
            self._known.call_key, event.chat_id, asked.call_id, asked.tool, asked.args
        )
        if (stored := self._stored(asked.call_id)) is not None:
            if stored.call.conflicts_with(digest):
                self._mark_conflict(stored)
            self._answer_again(event)
            return
        call = Call(
            chat_id=event.chat_id,
            call_id=asked.call_id,
            tool=asked.tool,
            args=asked.args,
            organization_id=asked.organization_id,
            owner_id=asked.owner_id,
            owner_name=asked.owner_name,
            asked_at=self._at,
            order=self._chat.seq,
            digest=digest,
        )
        if asked.call_id in self._before.canceled or asked.call_id in self.step.canceled:
            self._answer(call, tool_rules.canceled(call, self._chat), event)
        else:
            self._evaluate(call, event)

    def _mark_conflict(self, stored: StoredCall) -> None:
        """Note that a request with other content named the call: its answer says so from now on."""
        call = replace(stored.call, conflict=True)
        self.step.calls[call.call_id] = StoredCall(call, stored.answer)
        if call.call_id in self.step.open:
            self.step.open[call.call_id] = call

    def _answer_again(self, event: Event) -> None:
        """Publish the answer again if the event asks for a call that is answered: its sender waits for it."""
        if not isinstance(event.data, events.ToolRequested):
            return
        stored = self._stored(event.data.call_id)
        if stored is not None and stored.answer is not None:
            self.step.effects.append(PublishAnswer(stored.call, stored.answer, event))

    def _cancel(self, event: Event, call_id: str) -> None:
        call = self.step.open.get(call_id)
        if call is not None:
            self._answer(call, tool_rules.canceled(call, self._chat), event)
        elif self._stored(call_id) is None:
            self.step.canceled.add(call_id)

    def _stored(self, call_id: str) -> StoredCall | None:
        return self.step.calls.get(call_id) or self._before.calls.get(call_id)

    def _evaluate(self, call: Call, because: Event) -> bool:
        """Evaluate a call and carry out the outcome; return whether that moved the chat."""
        verdict = tool_rules.evaluate(call, self._chat, self._known)
        match verdict:
            case Answered():
                if verdict.found_running:
                    self._use(call, because)
                self._answer(call, verdict, because)
                return False
            case Waiting(wait=wait):
                if wait.running and (call.wait is None or not call.wait.running):
                    self._use(call, because)
                if wait != call.wait:
                    self._keep(replace(call, wait=wait), new=call.wait is None)
                return False
            case Resumed(event=resumed, wait=wait):
                self._keep(replace(call, wait=wait), new=call.wait is None)
                self._derive(resumed, because)
                return True
            case Requested(build=build, wait=wait, replaces=replaces):
                self._keep(replace(call, wait=wait), new=call.wait is None)
                self._derive(build, because)
                if replaces is not None:  # the chat already follows the new workspace
                    self._derive(replaces, because)
                return True

    def _use(self, call: Call, because: Event) -> None:
        """Put the end of the lifetime off, because a call has found the workspace running."""
        current = self._chat.current
        if current is not None and lifetimes.used(self._chat, self._at) is not None:
            found = events.WorkspaceUsed(workspace_id=current.id, call_id=call.call_id)
            self._derive(found, because)

    def _settle(self, because: Event) -> None:
        """Evaluate the waiting calls in order; start again whenever one of them moves the chat."""
        while any(self._evaluate(call, because) for call in list(self.step.open.values())):
            pass

    def _keep(self, call: Call, *, new: bool) -> None:
        self._count(+1 if new else 0)
        self.step.open[call.call_id] = call
        self.step.calls[call.call_id] = StoredCall(call, None)

    def _count(self, change: int) -> None:
        self.step.chat = replace(self._chat, open_calls=self._chat.open_calls + change)

    def _answer(self, call: Call, answer: Answered, because: Event) -> None:
        if self.step.open.pop(call.call_id, None) is not None:
            self._count(-1)
        args = redaction.arguments(call.tool, call.args, self._chat, self._known)
        self.step.calls[call.call_id] = StoredCall(replace(call, args=args), answer)
        self.step.effects.append(PublishAnswer(call, answer, because))

    # -- events -----------------------------------------------------------------------------------

    def _own(
        self, data: OwnEvent | events.AgentDisconnected, because: Event | None = None
    ) -> Event:
        """Return an event of workspaced with a new id, and with the trace context of `because`."""
        self._own_events += 1
        return Event.trusted(
            source=OURS,
            id=fresh_id(self._known.seed, f"event {self._own_events}"),
            chat_id=self._chat.chat_id,
            time=self._at,
            traceparent=because.traceparent if because else None,
            data=data,
        )

    def _apply(self, event: Event) -> None:
        """Apply an event of workspaced that no other event caused."""
        self._decide(event, event)
        self._settle(event)

    def _derive(self, data: OwnEvent, because: Event) -> None:
        """Apply an event that the rules derived; for a requested build, also create the job."""
        self._decide(self._own(data, because), because)
        if isinstance(data, BuildRequested):
            self._create_job(data, because)

    def _create_job(self, build: BuildRequested, because: Event) -> None:
        versions = self._known.catalog.versions
        version = versions.get(build.template.version_id) if build.template else None
        if version is None:
            self._notice(logging.ERROR, f"build {build.build_id} has no template version")
            return
        not_after = self._at + self._limits.build
        self.step.effects.append(PublishJob(self._chat, build, version, not_after, because))

    def _decide(self, event: Event, because: Event) -> None:
        before = self._chat
        decision = decide(before, event, self._at, self._limits, because)
        self.step.chat = decision.chat
        self.step.deleted += newly_deleted(before, self._chat)
        if (named := newly_named(before, self._chat)) is not None:
            requested = isinstance(event.data, BuildRequested)
            self.step.named.append(WorkspaceName(*named, requested))
            *_, owner_id, name = named
            self._known = with_name(self._known, owner_id, name)
        if isinstance(decision, Moved):
            self.step.effects += [PublishState(moved, because) for moved in decision.steps]
        if isinstance(event.data, events.AgentFact):
            self._expect_presence(event.data.agent_id, before, because)
        if isinstance(decision, Moved) or not isinstance(event.data, events.DeadlinePassed):
            self._publish_cancel(event)
        self._record_decision(event, before, decision, because)

    def _publish_cancel(self, event: Event) -> None:
        """Tell the provisioners again of a canceled build without end, if the event gives a reason to."""
        match event.data:
            case events.BuildCancelRequested(build_id=build_id):
                named = build_id or (self._chat.build.id if self._chat.build else None)
            case events.BuildStarted(build_id=build_id):
                named = build_id
            case events.DeadlinePassed():
                named = self._chat.build.id if self._chat.build else None
            case _:
                return
        canceled = canceled_builds(self._chat, event)
        self.step.effects += [cancel for cancel in canceled if cancel.build_id == named]
        build = self._chat.build
        if build is not None and build.id == named and build.canceled_unbegun:
            self.step.unneeded_jobs.add(build.id)

    def _expect_presence(self, agent_id: str, before: Chat, because: Event) -> None:
        known, now = (
            before.agent_facts_of_any_workspace(agent_id),
            self._chat.agent_facts_of_any_workspace(agent_id),
        )
        if known and known.lost_at is not None and now and now.connected:
            self.step.effects.append(ExpectPresence(agent_id, because))

    def _record_decision(
        self, event: Event, before: Chat, decision: Decision, because: Event
    ) -> None:
        ours, ignored = event.source == OURS, isinstance(decision, Ignored)
        if not (ours and ignored and decision.chat == before):
            cause = None if because is event else cause_of(because)
            deadline = set_deadline(before, decision.chat)
            self._record(event, entry_of(before, decision), cause, deadline)

    def _record(
        self,
        event: Event,
        recorded: Mapping[str, Any],
        cause: Cause | None = None,
        deadline: datetime | None = None,
    ) -> None:
        seq = self._chat.seq + 1
        self.step.chat = replace(self._chat, seq=seq)
        shown = redaction.event(event, self._chat, self._known)
        self.step.entries.append(
            Entry(seq, shown, at=self._at, cause=cause, deadline=deadline, **recorded)
        )

    def _notice(self, level: int, text: str, **ids: object) -> None:
        chat_id = self._chat.chat_id
        self.step.notices.append(
            Notice(level, f"chat {chat_id}: {text}", {"chat_id": chat_id, **ids})
        )


def with_name(known: Known, owner_id: str, name: str) -> Known:
    """Return `known` with another name that the owner uses, so that no other workspace gets it."""
    names = {**known.names, owner_id: known.names.get(owner_id, frozenset()) | {name.lower()}}
    return replace(known, names=names)
