"""A tool call as a row, and the verdicts that the rules come to."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from statemachine.events import BuildRequested, WaitResumed
from statemachine.messages import ToolResult
from statemachine.templates import Catalog
from statemachine.workspace import Value


class Until(StrEnum):
    """What a waiting call waits for."""

    SETTLED = "settled"
    """What became of the start build that it asked for or joined: build, agent, scripts."""
    STOPPED = "stopped"
    """The end of the stop build that it asked for."""
    OVER = "over"
    """The end of a build that stands in its way; then it is judged again."""


class Wait(Value, frozen=True):
    """Why a call is still open."""

    until: Until
    build_id: str
    requested: bool = False
    """The call itself asked for the build."""
    running: bool = False
    """The build had succeeded when the call came; it waits for the agent only."""
    extra: dict[str, Any] = {}
    """Keys that the answer will carry when all goes well."""


class Call(Value, frozen=True):
    """One tool call of a chat."""

    chat_id: str
    call_id: str
    tool: str
    args: dict[str, Any]
    organization_id: str
    owner_id: str
    owner_name: str
    asked_at: datetime
    order: int
    """Its request's place in the chat's event log: calls are judged in the order they came."""
    wait: Wait | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that the rules ask."""

    ttl_ms: int | None = None
    allowlist: frozenset[str] = frozenset()
    """Template ids; empty allows all."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much waits already, as far as the rules ask."""

    calls_per_chat: int = 1_000
    """Calls of one chat that may wait."""
    full: bool = False
    """As many calls wait as may, over all chats."""
    full_pools: frozenset[str] = frozenset()
    """Pools for which as many jobs wait as may."""


@dataclass(frozen=True, slots=True)
class Known:
    """All that the rules may know beside call and chat."""

    catalog: Catalog
    policy: Policy = field(default_factory=Policy)
    names: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """Owner id -> lower-case names of their workspaces."""
    had: AbstractSet[str] = frozenset()
    """Of the workspaces in question, those that some chat has."""
    seed: bytes = b""
    """Random bytes of this judgement: what new ids and names are made of."""
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class Answered:
    """The call is over."""

    result: ToolResult
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """The call stays open."""

    wait: Wait


@dataclass(frozen=True, slots=True)
class Requested:
    """A build is to be made, and the call waits for it."""

    build: BuildRequested
    wait: Wait
    replaces: BuildRequested | None = None
    """The stop or delete of the workspace that the new one takes the place of."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The chat goes back to waiting for a build that ran out of time without an end."""

    event: WaitResumed
    wait: Wait


CallOutcome = Answered | Waiting | Requested | Resumed


_DECODER: Final = msgspec.json.Decoder(Call)
_ENCODER: Final = msgspec.json.Encoder()


def call_from_json(text: str) -> Call:
    """Read a stored call. Raises ValueError for one that is damaged."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError as bad:
        raise ValueError(f"the call is damaged: {bad}") from bad


def call_to_json(call: Call) -> str:
    """Return a call as it is stored."""
    return _ENCODER.encode(call).decode()
