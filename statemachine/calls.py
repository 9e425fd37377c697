"""Stored tool calls, and the outcomes that the tool rules decide on."""

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
    """The condition that ends the wait of a call."""

    SETTLED = "settled"
    """The start build that the call requested or joined: its end, its agent and the startup
    scripts."""
    STOPPED = "stopped"
    """The end of the stop build that the call requested."""
    OVER = "over"
    """The end of a build that must end first. Then the rules are applied to the call again."""


class Wait(Value, frozen=True):
    """The wait of an open call: its condition and its build."""

    until: Until
    build_id: str
    workspace_id: str | None = None
    """The workspace of the build; None for calls that an earlier version stored."""
    requested: bool = False
    """Whether the call itself requested the build."""
    running: bool = False
    """Whether the build had already succeeded when the call arrived. Then the call waits only for
    the agent and its startup scripts."""
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
    """Position of the call's request in the chat's event log. Calls are evaluated in this order."""
    wait: Wait | None = None
    digest: str | None = None
    """Identifies the content of the request: see `arguments.content_digest`. None for calls that an
    earlier version stored; such a call conflicts with no other request."""
    conflict: bool = False
    """Whether a request with other content has named the same `call_id`."""

    def conflicts_with(self, digest: str) -> bool:
        """Return whether a request with the same `call_id` and that `digest` has other content."""
        return self.digest is not None and self.digest != digest


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that the tool rules use."""

    ttl_ms: int | None = None
    """The lifetime of a workspace."""
    bump_ms: int = 3_600_000
    """How far activity puts the end of a lifetime off; 0: not at all."""
    retention_ms: int | None = None
    """How long a workspace may rest before workers delete it; None: for ever."""
    allowlist: frozenset[str] = frozenset()
    """Ids of the allowed templates; if it is empty, all templates are allowed."""


@dataclass(frozen=True, slots=True)
class Load:
    """The limits of waiting calls and jobs, and which of them are reached."""

    calls_per_chat: int = 1_000
    """The maximum number of waiting calls of one chat."""
    full: bool = False
    """Whether the limit of waiting calls of all chats together is reached."""
    full_pools: frozenset[str] = frozenset()
    """The pools whose limit of waiting jobs is reached."""


class Known(msgspec.Struct, frozen=True):
    """Everything that the tool rules may use in addition to the call and the chat."""

    catalog: Catalog
    policy: Policy = msgspec.field(default_factory=Policy)
    names: Mapping[str, AbstractSet[str]] = msgspec.field(default_factory=dict)
    """Owner id -> lower-case names of the owner's workspaces."""
    had: AbstractSet[str] = frozenset()
    """Ids of orphaned workspaces that another chat owns now."""
    call_key: bytes = b""
    """The secret key of `arguments.content_digest`."""
    seed: bytes = b""
    """Random bytes from which new ids and names are generated."""
    load: Load = msgspec.field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class Answered:
    """The call is answered with `result`, and is no longer open."""

    result: ToolResult
    is_error: bool = False
    found_running: bool = field(default=False, compare=False)
    """Whether the call found the workspace running, which puts the end of its lifetime off. It is not stored."""


class StoredCall(msgspec.Struct, frozen=True):
    """A tool call and its answer; None while it is open."""

    call: Call
    answer: Answered | None


class Waiting(msgspec.Struct, frozen=True):
    """The call stays open."""

    wait: Wait


class Requested(msgspec.Struct, frozen=True):
    """The rules request a build, and the call waits for it."""

    build: BuildRequested
    wait: Wait
    replaces: BuildRequested | None = None
    """The stop or delete build for the workspace that the new workspace replaces."""


class Resumed(msgspec.Struct, frozen=True):
    """A build exceeded its limit, but has not ended: the chat returns to that build's state.

    The state gets a new limit.
    """

    event: WaitResumed
    wait: Wait


CallOutcome = Answered | Waiting | Requested | Resumed


_DECODER: Final = msgspec.json.Decoder(Call)
_ENCODER: Final = msgspec.json.Encoder()


def call_from_json(text: str) -> Call:
    """Return the call that `text` stores. Raises ValueError if `text` is not a stored call."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"the call is damaged: {error}") from error


def call_to_json(call: Call) -> str:
    """Return the JSON text in which a call is stored."""
    return _ENCODER.encode(call).decode()
