"""The facts and requests that can reach a chat: one frozen model for each type of event.

A fact has happened and is never refused; a request may be. Each model is the `data` of a CloudEvent;
`Event` adds those attributes of the envelope that the core needs. Unknown keys are ignored.

docs/schemas is made from the models that other programs send. The text below a class or a key becomes
its description there; run `make schemas` after a change.
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
    """How far an agent has come. All values but `created` and `starting` are settled."""

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
    """Asks for a tool call; the answer is `workspaced.tool_resolved.v1`."""

    name: ClassVar = "tool_requested"
    call_id: Token
    """Identifies the call within its chat. A repeated request with the same `call_id` starts nothing."""
    tool: Annotated[str, StringConstraints(max_length=128)]
    """The name of a tool, for example `create_workspace`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The arguments of the tool."""
    organization_id: Id
    """The chat's organization. The first accepted request of a chat fixes it."""
    owner_id: Id
    """The chat's owner. The first accepted request of a chat fixes it."""
    owner_name: Label
    """The owner's name, the first part of a workspace's full name."""


class ToolCanceled(Frozen):
    """Ends the wait of one call. The build that the call waits for goes on."""

    name: ClassVar = "tool_canceled"
    call_id: Token


class DeleteRequested(Frozen):
    """Requests a delete build of the chat's workspace."""

    name: ClassVar = "delete_requested"
    reason: Annotated[Text, AfterValidator(_not_blank)] | None = None
    """Text for people."""


class _OfBuild(Frozen):
    workspace_id: Id
    build_id: Id
    build_number: Annotated[int, Field(ge=0, lt=2**53)]
    """The number in the job or, for a build made elsewhere, the workspace's last number + 1."""
    transition: Annotated[Transition, Field(strict=False)]


class BuildStarted(_OfBuild):
    """A provisioner has begun a build."""

    name: ClassVar = "build_started"
    workspace_name: FactName | None = None
    """For a build made elsewhere: the workspace's name."""
    owner_name: FactName | None = None
    """For a build made elsewhere: the name of the workspace's owner."""
    template_id: Id | None = None
    """For a build made elsewhere: the template that it uses."""
    template_version_id: Id | None = None
    """For a build made elsewhere: the template version that it uses."""


class Agent(Frozen):
    """An agent of a workspace, as a successful build reports it."""

    id: Id
    """A later build never uses this id again."""
    name: FactName
    parent_id: Id | None = None
    """The agent that this one belongs to; only agents without a parent can be chosen for the chat."""
    display_order: int = 0
    """The chat's agent is the first one by this order, unless a name says otherwise."""


def _distinct(agents: tuple[Agent, ...], info: ValidationInfo) -> tuple[Agent, ...]:
    """Refuse two agents of one id, at the door only."""
    if info.context and len(agents) > 1 and len({agent.id for agent in agents}) < len(agents):
        raise PydanticCustomError("duplicate_ids", "lists an id twice")
    return agents


class BuildSucceeded(_OfBuild):
    """A build has succeeded. This is a terminal fact."""

    name: ClassVar = "build_succeeded"
    template_version_id: Id | None = None
    """The template version that the build used."""
    agents: Annotated[tuple[Agent, ...], Field(strict=False), AfterValidator(_distinct)] = ()


class Quota(Frozen):
    """How much of the owner's quota is used."""

    credits_consumed: float
    budget: float


class BuildFailed(_OfBuild):
    """A build has failed. This is a terminal fact."""

    name: ClassVar = "build_failed"
    error: ErrorText = ""
    """Why it failed, for people; at most 64 KiB, of which the end is kept."""
    error_code: FactText | None = None
    """`INSUFFICIENT_QUOTA` says that the owner's quota is used up; workspaced passes on any other code."""
    quota: Quota | None = None
    """With `INSUFFICIENT_QUOTA`: the owner's quota."""


class BuildCanceled(_OfBuild):
    """A build was canceled before it ended. This is a terminal fact."""

    name: ClassVar = "build_canceled"


class WorkspaceDeleted(Frozen):
    """A workspace no longer exists, whatever deleted it."""

    name: ClassVar = "workspace_deleted"
    workspace_id: Id
    build_id: Id | None = None
    build_number: int | None = None


Sequence = Annotated[int, Field(ge=0, lt=2**63)]


class _OfAgent(Frozen):
    workspace_id: Id
    build_id: Id
    """The start build that made the agent."""
    agent_id: Id
    """Equal to the last part of `source`."""
    sequence: Sequence
    """Rises with each fact of the agent, also over its restarts."""


class AgentConnected(_OfAgent):
    """The agent has connected."""

    name: ClassVar = "agent_connected"


class AgentDisconnected(_OfAgent):
    """The agent has disconnected.

    Workers record it themselves for an agent that they no longer see: source `/workspaced`, no sequence.
    """

    name: ClassVar = "agent_disconnected"
    sequence: Sequence | None = None  # type: ignore[assignment]
    """Rises with each fact of the agent, also over its restarts."""
    reason: FactText | None = None
    """Text for people."""


class AgentLifecycle(_OfAgent):
    """The agent reports how far it has come."""

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
    beginnings_cut: frozenset[str] = frozenset()
    """Keys of texts in `data` that lost their beginning when it was accepted; not kept in the log."""

    @property
    def type(self) -> str:
        """Its CloudEvents type, e.g. `workspaced.build_failed.v1`."""
        return f"workspaced.{self.data.name}.v1"
