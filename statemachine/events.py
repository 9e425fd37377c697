"""The facts and requests that can reach a chat: one frozen model for each type of event.

A fact has happened, so it is never refused. A request may be refused. Each model is the `data` of a
CloudEvent; `Event` adds the attributes of the envelope that the core needs. Unknown keys are
ignored.

docs/schemas is generated from the models of the events that other programs send. The text below a
class or a key becomes its description there; run `make schemas` after a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    model_serializer,
)
from pydantic_core import PydanticCustomError

INBOUND_CONTEXT: Final = {"at the door": True}
"""The pydantic validation context of inbound messages. Some checks run only with this context.

Logged events are read without it: they were accepted before, perhaps by an earlier version with
other checks.
"""

Id = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"),
]
"""A UUID in lower-case canonical form."""

Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
"""A call id, a pool or a sender's name."""

Text = Annotated[str, StringConstraints(max_length=65_536)]
"""Text for people."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=255)]
"""A short name that a user or another program chose."""


def _at_most(limit: int) -> AfterValidator:
    """Return a validator that limits a text to `limit` bytes of UTF-8, only in inbound messages."""

    def bounded(value: str, info: ValidationInfo) -> str:
        # A character has at most four bytes, so most texts need not be encoded to be measured.
        if info.context and len(value) * 4 > limit and len(value.encode()) > limit:
            raise PydanticCustomError(
                "text_too_long", "is longer than {limit} bytes", {"limit": limit}
            )
        return value

    return AfterValidator(bounded)


def _not_blank(value: str, info: ValidationInfo) -> str:
    """Reject an empty text, only in inbound messages; `leniency` then removes the optional key."""
    if info.context and not value:
        raise PydanticCustomError("text_blank", "is empty")
    return value


ERROR_SIZE: Final = 65_536
"""Characters of a build's error that are kept."""
TEXT_SIZE: Final = 4096
"""Characters of any other text of a fact that are kept."""

ErrorText = Annotated[str, _at_most(ERROR_SIZE)]
"""The error of a build; may be empty."""

FactText = Annotated[str, AfterValidator(_not_blank), _at_most(TEXT_SIZE)]
"""An optional text of a provisioner's or agent's fact."""

FactName = Annotated[str, StringConstraints(min_length=1), _at_most(TEXT_SIZE)]
"""A name in a provisioner's fact."""


class Frozen(BaseModel):
    """An immutable value. Unknown keys are ignored, and types are not converted."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields replaced, like pydantic's method but ten times as fast.

        It may skip what pydantic does for private attributes, extra fields and the set of given
        fields: these models have neither of the first two, and no code reads the third.
        """
        if deep:
            return super().model_copy(update=update, deep=True)
        return self._of({**self.__dict__, **update} if update else self.__dict__)

    @classmethod
    def trusted(cls, **fields: Any) -> Self:
        """Return a value without validating its fields, like `model_construct` but ten times as fast."""
        return cls._of(_defaults(cls) | fields)

    @classmethod
    def _of(cls, fields: Mapping[str, Any]) -> Self:
        new = object.__new__(cls)
        object.__setattr__(new, "__dict__", fields)
        object.__setattr__(new, "__pydantic_fields_set__", set())
        object.__setattr__(new, "__pydantic_extra__", None)
        object.__setattr__(new, "__pydantic_private__", None)
        return new


@cache
def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields that have a default, which must be immutable."""
    return {n: f.default for n, f in model.model_fields.items() if not f.is_required()}


class Transition(StrEnum):
    """What a build does to its workspace."""

    START = "start"
    STOP = "stop"
    DELETE = "delete"


class Lifecycle(StrEnum):
    """The progress of an agent's startup or shutdown scripts.

    All values but `created` and `starting` end the wait for the startup scripts.
    """

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
    """Requests a tool call; workspaced answers with `workspaced.tool_resolved.v1`."""

    name: ClassVar = "tool_requested"
    call_id: Token
    """Identifies the call within its chat. A second request with the same `call_id` does not start
    another call."""
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
    """Ends the wait of one call. The build that the call waits for continues."""

    name: ClassVar = "tool_canceled"
    call_id: Token


class DeleteRequested(Frozen):
    """Requests a delete build of the chat's workspace, or of one that it had before."""

    name: ClassVar = "delete_requested"
    reason: Annotated[Text, AfterValidator(_not_blank)] | None = None
    """Text for people."""
    workspace_id: Id | None = None
    """A replaced workspace of the chat, to delete it instead of the present one."""

    @model_serializer(mode="wrap")
    def _as_sent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the key out if it was not given, as the event log did before there was one."""
        written: dict[str, Any] = write(self)
        return {k: v for k, v in written.items() if k != "workspace_id" or v is not None}


class KeepRequested(Frozen):
    """Requests that the lifetime of the running workspace ends no sooner than after a time."""

    name: ClassVar = "keep_requested"
    seconds: Annotated[float, Field(gt=0)]
    """Counts from when workspaced takes the request. More than 7 days is taken as 7 days."""


class BuildCancelRequested(Frozen):
    """Requests that the chat's build ends before it is done."""

    name: ClassVar = "build_cancel_requested"
    build_id: Id | None = None
    """The build to cancel. If the chat's newest build is another one, nothing is canceled. Absent: the
    newest build."""
    reason: Annotated[Text, AfterValidator(_not_blank)] | None = None
    """Text for people."""


class _BuildEvent(Frozen):
    workspace_id: Id
    build_id: Id
    build_number: Annotated[int, Field(ge=0, lt=2**53)]
    """The number in the job or, for a build made elsewhere, the workspace's last number + 1."""
    transition: Annotated[Transition, Field(strict=False)]


class BuildStarted(_BuildEvent):
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


class ReportedAgent(Frozen):
    """An agent of a workspace, as a successful build reports it."""

    id: Id
    """Later builds must not use this id again."""
    name: FactName
    parent_id: Id | None = None
    """The agent to which this one belongs. Only agents without a parent can be chosen for the
    chat."""
    display_order: int = 0
    """workspaced chooses the agent with the lowest value for the chat, unless an agent's name marks
    it as the one to choose."""


def _distinct(agents: tuple[ReportedAgent, ...], info: ValidationInfo) -> tuple[ReportedAgent, ...]:
    """Reject two agents with the same id, only in inbound messages."""
    if info.context and len(agents) > 1 and len({agent.id for agent in agents}) < len(agents):
        raise PydanticCustomError("duplicate_ids", "lists an id twice")
    return agents


class BuildSucceeded(_BuildEvent):
    """A build has succeeded. This is a terminal fact."""

    name: ClassVar = "build_succeeded"
    template_version_id: Id | None = None
    """The template version that the build used."""
    agents: Annotated[
        tuple[ReportedAgent, ...], Field(strict=False), AfterValidator(_distinct)
    ] = ()


class Quota(Frozen):
    """How much of the owner's quota is used."""

    credits_consumed: float
    budget: float


class BuildFailed(_BuildEvent):
    """A build has failed. This is a terminal fact."""

    name: ClassVar = "build_failed"
    error: ErrorText = ""
    """Text for people: why the build failed. workspaced keeps at most the last 64 KiB."""
    error_code: FactText | None = None
    """`INSUFFICIENT_QUOTA` means that the owner's quota is used up. workspaced passes on any other
    code unchanged."""
    quota: Quota | None = None
    """The owner's quota, if `error_code` is `INSUFFICIENT_QUOTA`."""


class BuildCanceled(_BuildEvent):
    """A build was canceled before it ended. This is a terminal fact."""

    name: ClassVar = "build_canceled"


class WorkspaceDeleted(Frozen):
    """A workspace no longer exists, no matter how it was deleted."""

    name: ClassVar = "workspace_deleted"
    workspace_id: Id
    build_id: Id | None = None
    build_number: int | None = None


class AgentExited(Frozen):
    """The process or container of an agent is gone, and its provisioner will not start it again.

    If the agent has never connected, nobody waits for it any longer.
    """

    name: ClassVar = "agent_exited"
    workspace_id: Id
    build_id: Id
    """The start build that created the agent."""
    build_number: int | None = None
    agent_id: Id
    exit_code: Annotated[int, Field(ge=-(2**53), lt=2**53)] | None = None
    signal: FactText | None = None
    """The name of the signal that ended it, without `SIG`, for example `KILL`."""
    output: FactText | None = None
    """The last lines that it wrote."""


Sequence = Annotated[int, Field(ge=0, lt=2**63)]


class _AgentEvent(Frozen):
    workspace_id: Id
    build_id: Id
    """The start build that created the agent."""
    agent_id: Id
    """Equal to the last part of `source`."""
    sequence: Sequence
    """Rises with each fact of the agent, and does not start again when the agent restarts."""


class AgentConnected(_AgentEvent):
    """The agent has connected."""

    name: ClassVar = "agent_connected"


class AgentDisconnected(_AgentEvent):
    """The agent has disconnected.

    Workers record this fact themselves when an agent's presence message has expired: with the
    source `/workspaced` and no sequence.
    """

    name: ClassVar = "agent_disconnected"
    sequence: Sequence | None = None  # type: ignore[assignment]
    """Rises with each fact of the agent, and does not start again when the agent restarts."""
    reason: FactText | None = None
    """Text for people."""


class AgentLifecycle(_AgentEvent):
    """The agent reports how far its startup or shutdown scripts have come."""

    name: ClassVar = "agent_lifecycle"
    lifecycle: Annotated[Lifecycle, Field(strict=False)]


class AgentActivity(_AgentEvent):
    """Somebody works in the workspace: a command or terminal runs, or a request came.

    Sent when that begins, and every `activity_seconds` of the job while it lasts. Agents neither keep nor repeat it.
    """

    name: ClassVar = "agent_activity"


class TemplateRef(Frozen):
    """The template version that a job builds."""

    id: Id
    name: str
    version_id: Id
    pool: str


class Retried(StrEnum):
    """When workers request a stop or delete again that ended without success."""

    ALWAYS = "always"
    IF_FAILED = "if_failed"
    """Not when somebody has canceled it before it began."""


class BuildRequested(Frozen):
    """workspaced decided on a build. Only the tool rules create this event."""

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
    activity_bump_ms: int = 0
    """How far activity puts the end of the lifetime off; 0: not at all."""
    call_id: str | None = None
    creates: bool = False
    """The build is the first one of a new workspace. Events of earlier versions do not say so."""
    retried: Annotated[Retried, Field(strict=False)] | None = None
    """For a stop or delete: when workers request it again if it ends without success; None: never."""


class WaitResumed(Frozen):
    """A call joined a build that has exceeded its limit but not ended: the limit starts again."""

    name: ClassVar = "wait_resumed"
    build_id: Id
    call_id: str


class DeadlinePassed(Frozen):
    """The limit of the state has passed.

    An alarm that rings early does not cause this event: the worker sets it again.
    """

    name: ClassVar = "deadline_passed"
    generation: int


class TtlPassed(Frozen):
    """The lifetime of the workspace is over."""

    name: ClassVar = "ttl_passed"
    build_id: Id
    workspace_id: Id | None = None
    """None in events of earlier versions, which tried to stop a workspace only once."""
    possible: bool = True
    """Whether workers request a stop build now. If they can't, they try again later."""


class RetentionPassed(Frozen):
    """A workspace has rested for as long as the setting `stopped_workspace_retention` says."""

    name: ClassVar = "retention_passed"
    workspace_id: Id
    build_id: Id
    """Its last build."""
    possible: bool = True
    """Whether workers request a delete build now. If they can't, they try again later."""


class RetryDue(Frozen):
    """The time has come to request a stop or delete again that ended without success."""

    name: ClassVar = "retry_due"
    workspace_id: Id
    build_id: Id
    """The last build of the workspace."""
    possible: bool = True
    """Whether workers request the build now. If they can't, they try again later."""


class BuildOverdue(Frozen):
    """A stop or delete of a replaced workspace did not end within the limit of builds."""

    name: ClassVar = "build_overdue"
    workspace_id: Id
    build_id: Id


class WorkspaceUsed(Frozen):
    """A call found the workspace running, which puts the end of its lifetime off."""

    name: ClassVar = "workspace_used"
    workspace_id: Id
    call_id: str


class OrphanGracePassed(Frozen):
    """The grace period of an orphan, a workspace that belongs to no chat, is over."""

    name: ClassVar = "orphan_grace_passed"
    workspace_id: Id


class FactRejected(Frozen):
    """A fact of a provisioner or agent about a build could not be accepted and is a dead letter."""

    name: ClassVar = "fact_rejected"
    build_id: Id
    fact: str
    """The type name of the fact, e.g. `build_failed`; empty if it is unreadable or unknown."""
    detail: str
    """The reason why the fact was not accepted."""


class DatabaseRestored(Frozen):
    """The chat's snapshot is older than its published state, so the database was restored."""

    name: ClassVar = "database_restored"
    published_version: Annotated[int, Field(ge=0, lt=2**63)]
    """The version of the published state. The chat's next versions are above it."""


ProvisionerFact = BuildStarted | BuildSucceeded | BuildFailed | BuildCanceled
AgentFact = AgentConnected | AgentDisconnected | AgentLifecycle
ToolEvent = ToolRequested | ToolCanceled | DeleteRequested | KeepRequested | BuildCancelRequested
OwnEvent = (
    BuildRequested
    | WaitResumed
    | DeadlinePassed
    | TtlPassed
    | OrphanGracePassed
    | FactRejected
    | DatabaseRestored
    | RetentionPassed
    | RetryDue
    | BuildOverdue
    | WorkspaceUsed
)
Data = (
    ToolEvent
    | ProvisionerFact
    | WorkspaceDeleted
    | AgentExited
    | AgentFact
    | AgentActivity
    | OwnEvent
)

BY_KIND: Final[dict[Literal["tool", "provisioner", "agent"], tuple[type[Frozen], ...]]] = {
    "tool": get_args(ToolEvent),
    "provisioner": (*get_args(ProvisionerFact), WorkspaceDeleted, AgentExited),
    "agent": (*get_args(AgentFact), AgentActivity),
}
"""Kind of inbound subject -> the events that senders may publish on it."""

OURS: Final = "/workspaced"
"""The source of every event that workspaced itself creates."""


class Event(Frozen):
    """A CloudEvent as the core sees it. `(source, id)` is its identity."""

    source: str
    id: str
    chat_id: Id
    time: datetime
    traceparent: str | None = None
    data: Data
    pool: str | None = None
    """The pool to which the sending provisioner's credential is bound, if it is bound to one.

    Such a provisioner's facts about builds of other pools have no effect. Workers look the pool up;
    they do not take it from the message. The event log keeps it so that replay has the same result.
    """
    notice: str | None = None
    """Text for people: which parts of the event were changed or discarded when it was accepted."""
    beginnings_cut: frozenset[str] = frozenset()
    """Keys of texts in `data` whose beginning was cut off when the event was accepted.

    The event log does not keep this field.
    """

    @property
    def type(self) -> str:
        """The CloudEvents type of the event, e.g. `workspaced.build_failed.v1`."""
        return f"workspaced.{self.data.name}.v1"


def event_digest(source: str, event_id: str) -> bytes:
    """Return the 16 bytes that identify an event for ever, made of its source and id."""
    return sha256(f"{len(source)}:{source}{event_id}".encode()).digest()[:16]
