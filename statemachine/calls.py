"""A tool call as it is stored, and the outcomes that the rules of the tools decide on."""

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
    """The outcome of the start build that it requested or joined: of build, agent and scripts."""
    STOPPED = "stopped"
    """The end of the stop build that it requested."""
    OVER = "over"
    """The end of a build that must be over first; then the rules are applied again."""


class Wait(Value, frozen=True):
    """Why a call is still open."""

    until: Until
    build_id: str
    requested: bool = False
    """The call itself requested the build."""
    running: bool = False
    """The build had succeeded when the call arrived, so it waits for the agent only."""
    extra: dict[str, Any] = {}
    """Keys that the answer contains if the build succeeds."""


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
    """Position of its request in the chat's event log: calls are evaluated in this order."""
    wait: Wait | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that the rules use."""

    ttl_ms: int | None = None
    allowlist: frozenset[str] = frozenset()
    """Template ids; empty allows all."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many calls and jobs wait, as far as the rules need to know."""

    calls_per_chat: int = 1_000
    """How many calls of one chat may wait."""
    full: bool = False
    """The limit of waiting calls over all chats is reached."""
    full_pools: frozenset[str] = frozenset()
    """Pools whose limit of waiting jobs is reached."""


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that the rules may use besides the call and the chat."""

    catalog: Catalog
    policy: Policy = field(default_factory=Policy)
    names: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """Owner id -> lower-case names of their workspaces."""
    had: AbstractSet[str] = frozenset()
    """Those of the orphaned workspaces that another chat owns now."""
    seed: bytes = b""
    """Random bytes from which new ids and names are made."""
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
    """A build is requested, and the call waits for it."""

    build: BuildRequested
    wait: Wait
    replaces: BuildRequested | None = None
    """The stop or delete build of the workspace that the new one replaces."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The chat returns to the state of a build that exceeded its limit without an end, with a new limit."""

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
