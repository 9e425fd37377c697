"""One chat of a batch: applies events to it in memory, and collects the changes to write.

The core makes all decisions: `decide` moves the chat, and `evaluate` decides about its calls. This
module only carries the decisions out, in the order that docs/contract.md describes in section 5.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from handlers.worker import effects
from handlers.worker.own import own
from statemachine import events, redaction, timers, tool_rules
from statemachine.calls import (
    Answered,
    Call,
    Known,
    Requested,
    Resumed,
    Waiting,
)
from statemachine.chat import Cause, Chat, Limits
from statemachine.events import OURS, BuildRequested, Event, OwnEvent, Transition
from statemachine.fold import Unmoved, newly_deleted, newly_named
from statemachine.machine import Decision, Ignored, Moved, cause_of, decide
from statemachine.replay import entry_of, set_deadline
from statemachine.store import CallKey, Changes, Entry, OutboxMessage, StoredCall, StoredJob
from statemachine.timers import TimerKind

log = logging.getLogger(__name__)
FARTHEST: Final = timedelta(days=30)
"""How far ahead a timer may be set. A timer for a later time fires early, and is then armed
again."""


@dataclass(slots=True)
class ChatInBatch:
    """A chat's snapshot and calls, and the changes that the batch makes."""

    workspace: Chat
    open: dict[str, Call]
    """The waiting calls by id, in the order of their requests."""
    stored: Mapping[CallKey, StoredCall]
    """The calls named by events of this batch that were stored before it."""
    canceled: set[CallKey]
    known: Known
    limits: Limits
    now: datetime
    changes: Changes
    armed: dict[TimerKind, int] = field(default_factory=dict)
    """Kind of timer -> the generation that was armed when the batch began."""
    taken: dict[str, set[str]] = field(default_factory=dict)
    """The names in `known`. All chats of the batch share them, so no other chat takes a name given
    here."""
    early: bool = False
    """Whether a timer fired before its time: the clock of NATS runs further ahead than the worker
    knew."""
    late: timedelta = timedelta(0)
    """The longest delay of the timers that fired."""
    said: list[tuple[int, str, dict[str, object]]] = field(default_factory=list)
    """Messages to log after the commit: level, text and ids."""
    written: dict[str, StoredCall] = field(default_factory=dict)
    """The calls that this batch changed, by id."""
    orphans: frozenset[str] = frozenset()
    """The ids of the workspaces that were orphans when the batch began."""

    def repeat(self, event: Event) -> None:
        """Record a repeated event in the event log. It has no other effect."""
        again = Ignored(self.workspace, Unmoved.REPEAT)
        event = redaction.fact(event, self.workspace, self.known)
        self._note(event, entry_of(self.workspace, again))

    def apply(self, event: Event) -> None:
        """Apply an event from the bus."""
        version = self.workspace.version
        event = redaction.fact(event, self.workspace, self.known)
        self._decide(event, event)
        match event.data:
            case events.ToolRequested():
                self._asked(event, event.data)
            case events.ToolCanceled(call_id=call_id):
                self._canceled(event, call_id)
            case events.DeleteRequested():
                verdict = tool_rules.deletion(self.workspace, self.known, event.id)
                if verdict is not None:
                    self._own(verdict, event)
                elif self.workspace.current is not None and not self.workspace.calls_only_join:
                    self.say(
                        logging.ERROR,
                        "the template of its workspace is not stored here, so it cannot be deleted",
                    )
            case _:
                pass
        if self.workspace.version != version:  # without a new version, no wait can end
            self._settle(event)

    def take(self, event: Event) -> None:
        """Apply an event of workspaced itself that no other event caused."""
        self._decide(event, event)
        self._settle(event)

    def follow(self, data: OwnEvent, because: Event) -> None:
        """Apply an event that the rules derived from `because`, and evaluate the waiting calls."""
        self._own(data, because)
        self._settle(because)

    def rearm(self, purpose: TimerKind) -> None:
        """Arm the chat's present timer of this kind again at the end of the batch."""
        self.armed.pop(purpose, None)

    def close(self) -> None:
        """Collect what is written once for each chat: the snapshot, its calls and its timers."""
        chat = self.workspace
        for purpose in TimerKind:
            wake = timers.open_timer(chat, purpose, self.limits)
            if wake is not None and wake.generation != self.armed.get(purpose):
                due = min(wake.at, self.now + FARTHEST)
                self._send(effects.timer(chat.chat_id, purpose, wake.generation, due))
        self._report_orphans()
        self.changes.chats.append(self.workspace)
        self.changes.calls.extend(self.written.values())

    def _report_orphans(self) -> None:
        """Log, for operators, the workspaces that became orphans in this batch."""
        for former in self.workspace.orphans:
            build = former.build
            if former.id in self.orphans or build is None:
                continue
            outcome = build.outcome
            ending = outcome.ending if outcome else "was the last"
            error = f": {outcome.error}" if outcome and outcome.error else ""
            deleted = build.transition is Transition.DELETE
            self.say(
                logging.ERROR,
                f"workspace {former.id} {'is left' if deleted else 'runs on'} though no chat has it: "
                f"its {build.transition} build {build.id} {ending}{error}",
                build_id=build.id,
            )

    def say(self, level: int, words: str, **ids: object) -> None:
        """Collect a message that is logged after the commit."""
        if not log.isEnabledFor(level):
            return
        chat_id = self.workspace.chat_id
        self.said.append((level, f"chat {chat_id}: {words}", {"chat_id": chat_id, **ids}))

    def speak(self) -> None:
        """Log the collected messages."""
        for level, words, ids in self.said:
            log.log(level, "%s", words, extra=ids)

    # -- calls ----------------------------------------------------------------------------------

    def _asked(self, event: Event, asked: events.ToolRequested) -> None:
        key = CallKey(event.chat_id, asked.call_id)
        stored = self.written.get(asked.call_id) or self.stored.get(key)
        if stored is not None and stored.answer is None:
            return  # a repeated request: the call keeps waiting
        if stored is not None and stored.answer is not None:
            self._send(effects.answered(stored.call, stored.answer, event, self.now))
            return
        call = Call(
            chat_id=event.chat_id,
            call_id=asked.call_id,
            tool=asked.tool,
            args=asked.args,
            organization_id=asked.organization_id,
            owner_id=asked.owner_id,
            owner_name=asked.owner_name,
            asked_at=self.now,
            order=self.workspace.seq,
        )
        if key in self.canceled:
            self._answer(call, tool_rules.canceled(call, self.workspace), event)
            return
        self._judge(call, event)

    def _canceled(self, event: Event, call_id: str) -> None:
        call = self.open.get(call_id)
        if call is not None:
            self._answer(call, tool_rules.canceled(call, self.workspace), event)
        elif call_id not in self.written and CallKey(event.chat_id, call_id) not in self.stored:
            self.changes.cancellations.append(CallKey(event.chat_id, call_id))
            self.canceled.add(CallKey(event.chat_id, call_id))

    def _judge(self, call: Call, because: Event) -> bool:
        """Evaluate a call and carry out the outcome; return whether that moved the chat."""
        verdict = tool_rules.evaluate(call, self.workspace, self.known)
        match verdict:
            case Answered():
                self._answer(call, verdict, because)
                return False
            case Waiting(wait=wait):
                if wait != call.wait:
                    self._keep(replace(call, wait=wait), new=call.wait is None)
                return False
            case Resumed(event=resumed, wait=wait):
                self._keep(replace(call, wait=wait), new=call.wait is None)
                self._own(resumed, because)
                return True
            case Requested(build=build, wait=wait, replaces=replaces):
                self._keep(replace(call, wait=wait), new=call.wait is None)
                self._own(build, because)
                if replaces is not None:  # the chat already follows the new workspace
                    self._own(replaces, because)
                return True

    def _settle(self, because: Event) -> None:
        """Evaluate the waiting calls in order; start again whenever one of them moves the chat."""
        moved = True
        while moved:
            moved = False
            for call in list(self.open.values()):
                if self._judge(call, because):
                    moved = True
                    break

    def _keep(self, call: Call, *, new: bool) -> None:
        self._count(+1 if new else 0)
        self.open[call.call_id] = call
        self.written[call.call_id] = StoredCall(call, None)

    def _count(self, change: int) -> None:
        count = self.workspace.open_calls + change
        self.workspace = replace(self.workspace, open_calls=count)

    def _answer(self, call: Call, answer: Answered, because: Event) -> None:
        if self.open.pop(call.call_id, None) is not None:
            self._count(-1)
        args = redaction.arguments(call.tool, call.args, self.workspace, self.known)
        self.written[call.call_id] = StoredCall(replace(call, args=args), answer)
        self._send(effects.answered(call, answer, because, self.now))
        how = "error" if "error" in answer.result else "well"
        self.say(logging.INFO, f"answered {call.tool}: {how}", call_id=call.call_id)

    # -- moves ----------------------------------------------------------------------------------

    def _own(self, data: OwnEvent, because: Event) -> None:
        """Apply an event that the rules derived; for a requested build, also create the job."""
        self._decide(own(self.workspace.chat_id, data, self.now, because), because)
        if isinstance(data, BuildRequested):
            self._job(data, because)

    def _job(self, build: BuildRequested, because: Event) -> None:
        version = (
            self.known.catalog.versions.get(build.template.version_id) if build.template else None
        )
        if version is None:
            self.say(logging.ERROR, f"build {build.build_id} has no template version")
            return
        not_after = self.now + self.limits.build
        job = effects.job(
            self.workspace, build, version, not_after=not_after, because=because, at=self.now
        )
        self._send(job)
        kept = StoredJob(build.build_id, job.chat_id, job.subject, job.payload, not_after)
        self.changes.jobs.append(kept)

    def _decide(self, event: Event, because: Event) -> None:
        before = self.workspace
        decision = decide(before, event, self.now, self.limits, because)
        self.workspace = decision.chat
        gone = newly_deleted(before, self.workspace)
        self.changes.freed += [(workspace_id, before.chat_id) for workspace_id in gone]
        if (named := newly_named(before, self.workspace)) is not None:
            self.changes.names.append(named)
            *_, owner_id, name = named
            self.taken.setdefault(owner_id, set()).add(name.lower())
        if isinstance(decision, Moved):
            for step in decision.steps:
                self._send(effects.state(step, because, self.now))
        if isinstance(event.data, events.AgentFact):
            self._expect(event.data.agent_id, before, because)
        self._record(event, before, decision, because)

    def _expect(self, agent_id: str, before: Chat, because: Event) -> None:
        """Publish a presence message for an agent whose loss was undone.

        The fact that undid the loss may have been delayed. If the agent is still absent, the
        presence message expires, and workers notice the loss again.
        """
        known, now = before.heard_from(agent_id), self.workspace.heard_from(agent_id)
        if known and known.lost_at is not None and now and now.connected:
            self._send(effects.presence(before.chat_id, agent_id, because))

    def _record(self, event: Event, before: Chat, decision: Decision, because: Event) -> None:
        ours, ignored = event.source == OURS, isinstance(decision, Ignored)
        if not (ours and ignored and decision.chat == before):
            cause = None if because is event else cause_of(because)
            deadline = set_deadline(before, decision.chat)
            self._note(event, entry_of(before, decision), cause, deadline)

    def _note(
        self,
        event: Event,
        recorded: Mapping[str, Any],
        cause: Cause | None = None,
        deadline: datetime | None = None,
    ) -> None:
        self.workspace = replace(self.workspace, seq=self.workspace.seq + 1)
        shown = redaction.event(event, self.workspace, self.known)
        entry = Entry(
            self.workspace.seq, shown, at=self.now, cause=cause, deadline=deadline, **recorded
        )
        self.changes.entries.append((event.chat_id, entry))
        words = f"{entry.outcome} {event.type}: {entry.state_before} -> {entry.state_after}"
        self.say(logging.INFO, words, event_id=event.id, version=entry.version)

    def _send(self, outgoing: OutboxMessage) -> None:
        self.changes.outbox.append(outgoing)
