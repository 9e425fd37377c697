"""Derives published data from a snapshot: the `data` of state_changed, and notices."""

from __future__ import annotations

from statemachine.chat import Cause, Chat, Failure
from statemachine.codec import timestamp
from statemachine.messages import (
    ShownAgent,
    ShownBuild,
    ShownCause,
    ShownFailure,
    ShownWorkspace,
    StateChanged,
)
from statemachine.states import STATE_INFO, Limit
from statemachine.workspace import Build


def visible(chat: Chat) -> tuple[object, ...]:
    """Return all properties that state_changed shows.

    A chat gets a new version when one of them changes.
    """
    build = chat.build
    return (
        *visible_earlier(chat),
        build and (build.begun_at, build.cancel_requested_at, build.pool),
        chat.agent_reason(),
    )


def visible_earlier(chat: Chat) -> tuple[object, ...]:
    """Return the properties that `state_changed` showed in earlier versions, to replay their logs."""
    current, build = chat.current, chat.build
    return (
        chat.state,
        current
        and (
            current.id,
            current.name,
            current.owner_name,
            current.template_id,
            owner_of(chat),
            current.chosen,
        ),
        build and (build.id, build.number, build.transition),
        chat.agent_status(),
        chat.agent_lifecycle(),
        chat.failure,
        chat.deadline,
        chat.stops_at,
    )


def full_name(chat: Chat) -> str:
    """Return `<owner>/<name>`."""
    return f"{owner_of(chat) or ''}/{name_of(chat)}"


def owner_of(chat: Chat) -> str | None:
    """Return the name of the workspace's owner if it is known, otherwise of the chat's owner."""
    return (chat.current.owner_name if chat.current else None) or chat.owner_name


def name_of(chat: Chat) -> str:
    """Return the workspace's name, or its id if no fact contained the name."""
    return "" if chat.current is None else chat.current.name or chat.current.id


def id_of(chat: Chat) -> str:
    """Return the workspace's id; empty if the chat has none."""
    return "" if chat.current is None else chat.current.id


def state_changed(chat: Chat) -> StateChanged:
    """Return the data of `workspaced.state_changed.v1`."""
    stops_at = chat.stops_at
    return {
        "chat_id": chat.chat_id,
        "version": chat.version,
        "state": STATE_INFO[chat.state].wire,
        "previous_state": STATE_INFO[chat.previous_state].wire,
        "workspace": _workspace(chat),
        "build": None if chat.build is None else _build(chat.build),
        "agent": _agent(chat),
        "failure": None if chat.failure is None else _failure(chat.failure),
        "deadline": None if chat.deadline is None else timestamp(chat.deadline),
        "cause": None if chat.cause is None else _cause(chat.cause),
        "stops_at": None if stops_at is None else timestamp(stops_at),
    }


def _workspace(chat: Chat) -> ShownWorkspace | None:
    if chat.current is None:
        return None
    return {
        "id": chat.current.id,
        "name": name_of(chat),
        "owner_name": owner_of(chat),
        "template_id": chat.current.template_id,
    }


def _build(build: Build) -> ShownBuild:
    return {
        "id": build.id,
        "number": build.number,
        "transition": build.transition,
        "started_at": timestamp(build.started_at),
        "begun_at": None if build.begun_at is None else timestamp(build.begun_at),
        "cancel_requested_at": None
        if build.cancel_requested_at is None
        else timestamp(build.cancel_requested_at),
        "pool": build.pool,
    }


def _agent(chat: Chat) -> ShownAgent | None:
    chosen, status = chat.chosen, chat.agent_status()
    if chosen is None or status is None:
        return None
    return {
        "id": chosen.id,
        "name": chosen.name,
        "status": status,
        "lifecycle": chat.agent_lifecycle(),
        "reason": chat.agent_reason(),
    }


def _failure(failure: Failure) -> ShownFailure:
    shown: ShownFailure = {"reason": failure.reason, "message": failure.message}
    if failure.error_code is not None:
        shown["error_code"] = failure.error_code
    return shown


def _cause(cause: Cause) -> ShownCause:
    return {"source": cause.source, "id": cause.id, "type": cause.type}


def notice(chat: Chat) -> str | None:
    """Return a text for people: why the followed build makes no progress, or None.

    Either a fact about the build could not be accepted, or no provisioner has begun the build yet.
    """
    build, rejection = chat.build, chat.rejection
    if build is not None and rejection is not None:
        what = rejection.fact or "fact"
        return (
            f"a {what} of build {build.number} was not accepted and is a dead letter: "
            f"{rejection.detail}; its sender must send it again, corrected, with a new event id"
        )
    if (
        build is None
        or build.begun_at is not None
        or STATE_INFO[chat.state].limit is not Limit.BUILD
    ):
        return None
    pool = f" of pool '{build.template.pool}'" if build.template else ""
    return f"no provisioner{pool} has begun build {build.number} yet"
