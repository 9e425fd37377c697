"""The facts and requests that can reach a chat: one frozen model per type of contract §3.

A fact is past tense and never refused; a request may be. Each model is the `data` of a CloudEvent;
`Event` adds the envelope's attributes that the core needs. Unknown keys are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

AT_THE_DOOR: Final = {"at the door": True}
"""The validation context of messages that come in.

What stands in a log was accepted once, perhaps by an earlier version: it is read without it.
"""

Id = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"),
]
"""A UUID in lower-case canonical form."""

Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
"""A call id, a pool or a sender's name."""

Text = Annotated[str, StringConstraints(max_length=65_536)]
"""Words for people."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=255)]
"""A short name that somebody else chose."""


def _at_most(limit: int) -> AfterValidator:
    """Bound a fact's text to `limit` bytes of UTF-8, at the door only."""

    def bounded(value: str, info: ValidationInfo) -> str:
        # No character takes more than four bytes, so most texts need not be encoded.
        if info.context and len(value) * 4 > limit and len(value.encode()) > limit:
            raise PydanticCustomError(
                "text_too_long", "is longer than {limit} bytes", {"limit": limit}
            )
        return value

    return AfterValidator(bounded)


def _not_blank(value: str, info: ValidationInfo) -> str:
    """Have an optional text that is empty left out, at the door only."""
    if info.context and not value:
        raise PydanticCustomError("text_blank", "is empty")
    return value


ErrorText = Annotated[str, _at_most(65_536)]
"""Why a build failed; may be empty."""

FactText = Annotated[str, AfterValidator(_not_blank), _at_most(4096)]
"""An optional text of a provisioner's or agent's fact."""

FactName = Annotated[str, StringConstraints(min_length=1), _at_most(4096)]
"""A name in a provisioner's fact."""


class Frozen(BaseModel):
    """A value."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return the value with some fields replaced, as pydantic's does, but ten times as fast.

        Values have no private attributes and no extra fields, and nobody asks which fields were set.
        """
        if deep:
            return super().model_copy(update=update, deep=True)
        new = object.__new__(type(self))
        object.__setattr__(
            new, "__dict__", {**self.__dict__, **update} if update else self.__dict__
        )
        object.__setattr__(new, "__pydantic_fields_set__", self.__pydantic_fields_set__)
        object.__setattr__(new, "__pydantic_extra__", None)
        object.__setattr__(new, "__pydantic_private__", None)
        return new


class Transition(StrEnum):
    """What a build does to its workspace."""

    START = "start"
    STOP = "stop"
    DELETE = "delete"


class Lifecycle(StrEnum):
    """How far an agent is; settled is all but the first two."""

    CREATED = "created"
    STARTING = "starting"
    START_TIMEOUT = "start_timeout"
    START_ERROR = "start_error"
    READY = "ready"
    SHUTTING_DOWN = "shutting_down"
    SHUTDOWN_TIMEOUT = "shutdown_timeout"
    SHUTDOWN_ERROR = "shutdown_error"
    OFF = "off"


class ToolRequested(Frozen):
    """The chat's model called a tool."""

    name: ClassVar = "tool_requested"
    call_id: Token
    tool: Annotated[str, StringConstraints(max_length=128)]
    args: dict[str, Any] = Field(default_factory=dict)
    organization_id: Id
    owner_id: Id
    owner_name: Label


class ToolCanceled(Frozen):
    """The chat no longer waits for that call."""

    name: ClassVar = "tool_canceled"
    call_id: Token


class DeleteRequested(Frozen):
    """The chat's workspace is to be deleted."""

    name: ClassVar = "delete_requested"
    reason: Annotated[Text, AfterValidator(_not_blank)] | None = None


class _OfBuild(Frozen):
    workspace_id: Id
    build_id: Id
    build_number: Annotated[int, Field(ge=0, lt=2**53)]
    transition: Annotated[Transition, Field(strict=False)]


class BuildStarted(_OfBuild):
    """A provisioner took the build up."""

    name: ClassVar = "build_started"
    workspace_name: FactName | None = None
    owner_name: FactName | None = None
    template_id: Id | None = None
    template_version_id: Id | None = None


class Agent(Frozen):
    """An agent that a build made."""

    id: Id
    name: FactName
    parent_id: Id | None = None
    display_order: int = 0


def _distinct(agents: tuple[Agent, ...], info: ValidationInfo) -> tuple[Agent, ...]:
    """Refuse two agents of one id, at the door only."""
    if info.context and len(agents) > 1 and len({agent.id for agent in agents}) < len(agents):
        raise PydanticCustomError("duplicate_ids", "lists an id twice")
    return agents


class BuildSucceeded(_OfBuild):
    """The build is done; these agents will connect."""

    name: ClassVar = "build_succeeded"
    template_version_id: Id | None = None
    agents: Annotated[tuple[Agent, ...], Field(strict=False), AfterValidator(_distinct)] = ()


class Quota(Frozen):
    """What an owner used of what they may use."""

    credits_consumed: float
    budget: float


class BuildFailed(_OfBuild):
    """The provisioner gave up on the build."""

    name: ClassVar = "build_failed"
    error: ErrorText = ""
    error_code: FactText | None = None
    quota: Quota | None = None


class BuildCanceled(_OfBuild):
    """The build was called off before it ended."""

    name: ClassVar = "build_canceled"


class WorkspaceDeleted(Frozen):
    """The workspace is gone, however that came."""

    name: ClassVar = "workspace_deleted"
    workspace_id: Id
    build_id: Id | None = None
    build_number: int | None = None


Sequence = Annotated[int, Field(ge=0, lt=2**63)]


class _OfAgent(Frozen):
    workspace_id: Id
    build_id: Id
    agent_id: Id
    sequence: Sequence


class AgentConnected(_OfAgent):
    """The agent reached the bus."""

    name: ClassVar = "agent_connected"


class AgentDisconnected(_OfAgent):
    """The agent left, or (source `/workspaced`, no sequence) was lost."""

    name: ClassVar = "agent_disconnected"
    sequence: Sequence | None = None  # type: ignore[assignment]
    reason: FactText | None = None


class AgentLifecycle(_OfAgent):
    """The agent came to a point of its life."""

    name: ClassVar = "agent_lifecycle"
    lifecycle: Annotated[Lifecycle, Field(strict=False)]


class TemplateRef(Frozen):
    """The template version that a job builds."""

    id: Id
    name: str
    version_id: Id
    pool: str


class BuildRequested(Frozen):
    """workspaced decided on a build. Its own fact: only the rules of the tools make it."""

    name: ClassVar = "build_requested"
    workspace_id: Id
    workspace_name: str
    owner_name: str
    build_id: Id
    build_number: int
    transition: Annotated[Transition, Field(strict=False)]
    template: TemplateRef | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    preset_id: Id | None = None
    ttl_ms: int | None = None
    call_id: str | None = None


class WaitResumed(Frozen):
    """A call came to a build that had run out of time but not ended: its wait begins anew."""

    name: ClassVar = "wait_resumed"
    build_id: Id
    call_id: str


class DeadlinePassed(Frozen):
    """The state's limit is over. A timer that fires early is no such fact; the worker arms it anew."""

    name: ClassVar = "deadline_passed"
    generation: int


class TtlPassed(Frozen):
    """The workspace has lived as long as it may."""

    name: ClassVar = "ttl_passed"
    build_id: Id


class OrphanGracePassed(Frozen):
    """A workspace that no chat has ran on for longer than it may."""

    name: ClassVar = "orphan_grace_passed"
    workspace_id: Id


class FactRejected(Frozen):
    """A provisioner or an agent told something of a build that can't be accepted: a dead letter."""

    name: ClassVar = "fact_rejected"
    build_id: Id
    fact: str
    """What it was, e.g. `build_failed`; empty if that can't be read either."""
    detail: str
    """What is wrong with it."""


class DatabaseRestored(Frozen):
    """What is kept of the chat is older than what was published: the database was restored."""

    name: ClassVar = "database_restored"
    published_version: Annotated[int, Field(ge=0, lt=2**63)]
    """The version above which those go on that are published from here on."""


ProvisionerFact = BuildStarted | BuildSucceeded | BuildFailed | BuildCanceled
AgentFact = AgentConnected | AgentDisconnected | AgentLifecycle
ToolEvent = ToolRequested | ToolCanceled | DeleteRequested
OwnEvent = (
    BuildRequested
    | WaitResumed
    | DeadlinePassed
    | TtlPassed
    | OrphanGracePassed
    | FactRejected
    | DatabaseRestored
)
Data = ToolEvent | ProvisionerFact | WorkspaceDeleted | AgentFact | OwnEvent

BY_KIND: Final[dict[Literal["tool", "provisioner", "agent"], tuple[type[Frozen], ...]]] = {
    "tool": (ToolRequested, ToolCanceled, DeleteRequested),
    "provisioner": (BuildStarted, BuildSucceeded, BuildFailed, BuildCanceled, WorkspaceDeleted),
    "agent": (AgentConnected, AgentDisconnected, AgentLifecycle),
}
"""Which types may come on which kind of inbound subject."""

OURS: Final = "/workspaced"
"""The source of every event that workspaced itself makes."""


class Event(Frozen):
    """A CloudEvent as the core sees it. `(source, id)` is its identity."""

    source: str
    id: str
    chat_id: Id
    time: datetime
    traceparent: str | None = None
    data: Data
    pool: str | None = None
    """Of a provisioner whose name is bound to one: what it says of others' builds moves nothing.

    Never the sender's word: it is looked up, and stands in the log so that the log folds to the same.
    """
    notice: str | None = None
    """What was changed of it when it was accepted, for people; shown beside it in the log."""

    @property
    def type(self) -> str:
        """Its CloudEvents type, e.g. `workspaced.build_failed.v1`."""
        return f"workspaced.{self.data.name}.v1"
