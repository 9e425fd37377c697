"""Composes the messages that carry out the effects of steps. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from hashlib import sha256
from typing import Any, Final

from msgspec import Struct

from bus import subjects
from statemachine.arguments import unknown_arguments
from statemachine.calls import Answered, Call
from statemachine.chat import Chat
from statemachine.codec import encode
from statemachine.events import OURS, Event
from statemachine.lifetimes import activity_seconds
from statemachine.messages import BuildCancel, BuildJob, ToolResolved
from statemachine.naming import derived_id
from statemachine.sizes import LONGEST_DATA, fit
from statemachine.step import (
    ExpectPresence,
    PublishAnswer,
    PublishCancel,
    PublishJob,
    PublishState,
    Step,
)
from statemachine.store import StoredJob
from statemachine.views import state_changed

UNSENDABLE: Final = "the answer can't be sent"
"""The beginning of the error that replaces an answer which NATS refuses to store."""
_MILLISECOND: Final = timedelta(milliseconds=1)


class Lane(IntEnum):
    """Kinds of messages.

    States and alarms are published first. So the receiver of a job or an answer never reads an
    older state afterwards.
    """

    STATE = 0
    JOB = 1
    ALARM = 2
    RESULT = 3
    PRESENCE = 4
    CANCEL = 5


class Publication(Struct, frozen=True):
    """A message to publish. To publish it twice does no harm."""

    chat_id: str
    """The chat that it is about; empty for an alarm."""
    lane: Lane
    subject: str
    message_id: str
    payload: bytes
    version: int | None = None
    """The version of a state."""
    due: datetime | None = None
    """The time of an alarm, by the database's clock."""
    lead: float = 0.0
    """Seconds from the moment when the message was composed to `due`."""

    @property
    def build_id(self) -> str:
        """The build of a job. Its message id begins with it; a token may follow."""
        return self.message_id.partition(":")[0]


def effects_of(step: Step) -> tuple[list[Publication], list[StoredJob]]:
    """Return the messages of a step's effects, and those of them that are jobs once more, to be stored."""
    chat_id, at = step.chat.chat_id, step.at
    messages: list[Publication] = []
    jobs: list[StoredJob] = []
    for effect in step.effects:
        match effect:
            case PublishState(chat=chat, because=because):
                message = state(chat, because, at)
            case PublishJob(build=build, not_after=not_after):
                unneeded = build.build_id in step.unneeded_jobs
                message = job(effect, at)
                stored = build.build_id, chat_id, message.subject, message.payload, not_after
                jobs.append(StoredJob(*stored, unneeded=unneeded))
                if unneeded:
                    continue
            case PublishAnswer(call=call, answer=answer, because=because):
                message = answered(call, answer, because, at)
            case ExpectPresence(agent_id=agent_id, because=because):
                message = presence(chat_id, agent_id, because)
            case PublishCancel():
                message = cancel(chat_id, effect, at)
        messages.append(message)
    return messages, jobs


def state(chat: Chat, because: Event | None, at: datetime) -> Publication:
    """Return the state_changed message that publishes one version of a chat."""
    name = f"{chat.chat_id}:{chat.version}"
    body = _event("state_changed", chat.chat_id, state_changed(chat), name, at, because)
    return Publication(
        chat.chat_id, Lane.STATE, subjects.state(chat.chat_id), name, body, version=chat.version
    )


def alarm(at: datetime, now: datetime) -> Publication:
    """Return the message that makes NATS ring an alarm; both times are by the database's clock."""
    milliseconds = round(at.timestamp() * 1000)
    body = json.dumps({"at": milliseconds}).encode()
    lead = (at - now).total_seconds()
    return Publication("", Lane.ALARM, subjects.alarm(milliseconds), "", body, due=at, lead=lead)


def in_milliseconds(due: datetime) -> datetime:
    """Return `due`, rounded up to a whole millisecond, because NATS schedules in milliseconds."""
    return due + (-timedelta(microseconds=due.microsecond) % _MILLISECOND)


def presence(chat_id: str, agent_id: str, because: Event) -> Publication:
    """Return a presence message for an agent whose loss was undone.

    If the agent does not renew it, workers notice the loss again when it expires.
    """
    name = f"{chat_id}:{agent_id}:{because.source}:{because.id}"
    return Publication(chat_id, Lane.PRESENCE, subjects.presence(chat_id, agent_id), name, b"{}")


def job(wanted: PublishJob, at: datetime) -> Publication:
    """Return the job that requests a build from the provisioners of its pool.

    A provisioner that receives the job for the first time after its `not_after` must not build.
    Raises ValueError if the build has no template.
    """
    chat, build, version = wanted.chat, wanted.build, wanted.version
    if build.template is None:
        raise ValueError("a build without a template can't be asked for")
    data: BuildJob = {
        "chat_id": chat.chat_id,
        "workspace_id": build.workspace_id,
        "workspace_name": build.workspace_name,
        "build_id": build.build_id,
        "build_number": build.build_number,
        "transition": build.transition,
        "owner_id": chat.owner_id,
        "owner_name": build.owner_name,
        "organization_id": chat.organization_id,
        "template": {
            "id": build.template.id,
            "name": build.template.name,
            "version_id": build.template.version_id,
            "spec": version.manifest.spec,
            "archive": {"sha256": version.sha256, "size": version.size},
        },
        "parameters": build.parameters,
        "not_after": wanted.not_after.isoformat().replace("+00:00", "Z"),
        "activity_seconds": activity_seconds(build.ttl_ms, build.activity_bump_ms),
    }
    if build.preset_id is not None:
        data["preset_id"] = build.preset_id
    if build.ttl_ms is not None:
        data["ttl_ms"] = build.ttl_ms
    body = encode(
        "build_requested",
        OURS,
        chat.chat_id,
        data,
        event_id=build.build_id,
        time=at,
        traceparent=wanted.because.traceparent,
    )
    return Publication(
        chat.chat_id, Lane.JOB, subjects.job(build.template.pool), build.build_id, body
    )


def cancel(chat_id: str, canceled: PublishCancel, at: datetime) -> Publication:
    """Return the message that tells the provisioners of a pool to end a build. No stream stores it."""
    data: BuildCancel = {
        "chat_id": chat_id,
        "workspace_id": canceled.workspace_id,
        "build_id": canceled.build_id,
    }
    because = canceled.because
    cause = f"{because.source}:{because.id}" if because else ""
    name = f"cancel:{canceled.build_id}:{cause}:{at.isoformat()}"
    body = _event("build_cancel", chat_id, data, name, at, because)
    return Publication(chat_id, Lane.CANCEL, subjects.cancel(canceled.pool), name, body)


def answered(call: Call, answer: Answered, because: Event, at: datetime) -> Publication:
    """Return the message with the answer of a call.

    Its message id contains the identity of `because`, so a repeated request, which is another
    event, publishes the answer again.
    """
    name = f"{call.chat_id}:{call.call_id}:{because.source}:{because.id}"
    return _answer(call, answer, because, at, name)


def answered_again(call: Call, answer: Answered, at: datetime) -> Publication:
    """Return the message with the answer of a call that NATS may have lost."""
    name = f"{call.chat_id}:{call.call_id}{':conflict' if call.conflict else ''}"
    return _answer(call, answer, None, at, name)


def _answer(
    call: Call, answer: Answered, because: Event | None, at: datetime, name: str
) -> Publication:
    ignored = unknown_arguments(call.tool, call.args)
    return result(
        call.chat_id,
        call.call_id,
        call.tool,
        answer,
        because,
        at,
        name,
        conflict=call.conflict,
        ignored=ignored,
    )


def refused(
    chat_id: str, call_id: str, tool: str | None, detail: str, message: bytes, at: datetime
) -> Publication:
    """Return the message with the answer of a request that is a dead letter.

    `detail` is what is wrong with the request, and `message` its body.
    """
    answer = Answered({"error": f"the request was not accepted: {detail}"}, is_error=True)
    name = f"{chat_id}:{call_id}:{digest(message)}"
    return result(chat_id, call_id, tool or "", answer, None, at, name)


def result(
    chat_id: str,
    call_id: str,
    tool: str,
    answer: Answered,
    because: Event | None,
    at: datetime,
    name: str,
    *,
    conflict: bool = False,
    ignored: Sequence[str] = (),
) -> Publication:
    """Return the message with the answer of a call.

    `conflict`: a request with other content named the call; `ignored`: the unknown keys of its arguments. `name` is the message id. It distinguishes this publication from others of the same answer.
    """
    data: ToolResolved = {
        "call_id": call_id,
        "tool": tool,
        "is_error": answer.is_error,
        "result": answer.result,
    }
    if conflict:
        data["conflict"] = True
    if ignored:
        data["ignored"] = list(ignored)
    body = _event("tool_resolved", chat_id, data, name, at, because)
    return Publication(chat_id, Lane.RESULT, subjects.result(chat_id, call_id), name, body)


def is_answered(answer: bytes, published: bytes) -> bool:
    """Return whether a published message is this answer, or the error that replaced it.

    It may also be a refusal of an earlier request with the same `call_id`.
    """
    wanted, found = json.loads(answer)["data"], json.loads(published)["data"]
    if all(wanted.get(key) == found.get(key) for key in ("is_error", "result", "conflict")):
        return True
    return str(found["result"].get("error", "")).startswith(UNSENDABLE)


def _event(
    kind: str, chat_id: str, data: Mapping[str, Any], name: str, at: datetime, because: Event | None
) -> bytes:
    """Return an event of workspaced for callers or frontends, with an id derived from `name`.

    Its texts for people are cut if it is too long.
    """

    def encoded(shown: Mapping[str, Any]) -> bytes:
        return encode(
            kind,
            OURS,
            chat_id,
            shown,
            event_id=derived_id(f"workspaced:{name}".encode()),
            time=at,
            traceparent=because.traceparent if because else None,
        )

    body = encoded(data)
    return body if len(body) <= LONGEST_DATA else encoded(fit(data))


def digest(data: bytes) -> str:
    """Return the first 32 hex digits of the SHA-256 of `data`."""
    return sha256(data).hexdigest()[:32]


def instead(payload: bytes, message: str) -> bytes:
    """Return the result event `payload` with the error `message` instead of its answer.

    It replaces an answer that NATS refuses to store.
    """
    envelope = json.loads(payload)
    envelope["data"] |= {"is_error": True, "result": {"error": message}}
    return json.dumps(envelope, ensure_ascii=False).encode()


def rounds_of(states: Iterable[Publication]) -> list[list[Publication]]:
    """Return states in rounds with at most one of each chat: first the oldest of each, and so on."""
    rounds: list[list[Publication]] = []
    count: dict[str, int] = {}
    for state_ in sorted(states, key=lambda one: one.version or 0):
        number = count[state_.subject] = count.get(state_.subject, -1) + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(state_)
    return rounds
