"""The types of the `data` of every message that workspaced publishes.

The functions that build these messages return plain dictionaries of these types. mypy checks the
functions, and nothing is validated at run time. `docs/generate_schemas.py` generates the JSON Schemas in
docs/schemas from the same types; the text below a key becomes its description there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field

# pydantic supports the TypedDict of `typing` only in Python 3.12 and later.
from typing_extensions import TypedDict

from statemachine.events import Id, Lifecycle, Token, Transition
from statemachine.states import AgentStatus, FailureReason, WireState

Timestamp = Annotated[
    str, Field(json_schema_extra={"format": "date-time"}, pattern=r"^\d{4}-\d\d-\d\dT.*Z$")
]
"""RFC 3339 in UTC, with `Z`."""


class ShownWorkspace(TypedDict):
    """The chat's current workspace."""

    id: Id
    name: str
    """The workspace's name without its owner, or its id if no fact contained the name."""
    owner_name: str | None
    """Null if the workspace was made elsewhere and no fact contained the owner's name."""
    template_id: Id | None
    """Null if the workspace was made elsewhere and no fact contained the template."""


class ShownBuild(TypedDict):
    """The newest build of the workspace."""

    id: Id
    number: int
    """Rises with each build of a workspace."""
    transition: Transition
    started_at: Timestamp
    """When the build was requested or, if it was made elsewhere, first reported."""
    begun_at: Timestamp | None
    """When its `build_started` was stored, or its terminal fact if that came first. Null: no provisioner
    has begun it."""
    cancel_requested_at: Timestamp | None
    """When it was canceled; null if it was not."""
    pool: str | None
    """The pool whose provisioners work on it. Null if the build was made elsewhere."""


class ShownAgent(TypedDict):
    """The agent that was chosen for the chat."""

    id: Id
    name: str
    status: AgentStatus
    lifecycle: Lifecycle | None
    """Null until the agent reports its lifecycle."""
    reason: str | None
    """Text for people: why the agent is gone; null if it is not, or if the reason is not known."""


class ShownFailure(TypedDict):
    """Why the state is `failed`."""

    reason: FailureReason
    message: str
    """Text for people."""
    error_code: NotRequired[str]
    """The `error_code` of `build_failed`, if it had one."""


class ShownCause(TypedDict):
    """The event that caused a change."""

    source: str
    """The event's `source`; `/workspaced` if a limit passed."""
    id: str
    """The event's `id`."""
    type: str
    """The event's `type`; `workspaced.deadline_passed.v1` if the limit of a state passed."""


class StateChanged(TypedDict):
    """The state of a chat after a change."""

    chat_id: Id
    version: Annotated[int, Field(ge=0)]
    """Rises by 1 with each change of any other key. Discard a state whose version is not above the
    last one that you received."""
    state: WireState
    previous_state: WireState
    workspace: ShownWorkspace | None
    """Null if the chat has no workspace."""
    build: ShownBuild | None
    """Null only in the state `none`."""
    agent: ShownAgent | None
    """Null until an agent is chosen."""
    failure: ShownFailure | None
    """Set in the state `failed` and in no other."""
    deadline: Timestamp | None
    """When the limit of the state passes. Set in all states that have a limit (`building`,
    `agent_connecting`, `scripts_running` and `stopping`), and in no other."""
    cause: ShownCause | None
    """Null only at version 0."""
    stops_at: Timestamp | None
    """When workers stop the workspace if nobody uses it until then; null while it does not run or has no lifetime."""


class CloudEvent(TypedDict):
    """The envelope of every event: a CloudEvents 1.0 event in structured JSON mode."""

    specversion: Literal["1.0"]
    id: Annotated[str, Field(min_length=1, max_length=1024)]
    """A UUID that cannot be guessed. A second event with the same `source` and `id` has no
    effect."""
    source: Annotated[str, Field(min_length=1, max_length=1024)]
    """`/chat/<service>`, `/provisioner/<name>`, `/agent/<agent_id>` or `/workspaced`."""
    type: Annotated[str, Field(pattern=r"^workspaced\.[a-z_]+\.v[1-9][0-9]{0,3}$")]
    subject: Id
    """The chat id, equal to the one in the NATS subject."""
    time: NotRequired[Annotated[str, Field(json_schema_extra={"format": "date-time"})]]
    """RFC 3339. workspaced writes UTC with `Z`. If the key is absent, workspaced uses the time of
    receipt."""
    datacontenttype: NotRequired[str]
    """workspaced writes `application/json`."""
    traceparent: NotRequired[str]
    """A W3C trace context. Events that result from this one have the same trace id."""
    data: dict[str, Any]
    """The content of the event. Its schema depends on `type`."""


class Archive(TypedDict):
    """The template's folder as a tar.gz, which the rpc `template_archive` returns in pieces."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: int
    """In bytes."""


class Spec(TypedDict):
    """The tables of template.toml that the provisioner reads."""

    build: dict[str, Any]
    """The table `[build]`."""
    agent: list[dict[str, Any]]
    """The tables `[[agent]]`."""


class JobTemplate(TypedDict):
    """The template version to build."""

    id: Id
    name: str
    version_id: Id
    spec: Spec
    archive: Archive


class BuildJob(TypedDict):
    """A build that workspaced requests from a provisioner."""

    chat_id: Id
    workspace_id: Id
    workspace_name: str
    build_id: Id
    build_number: int
    transition: Transition
    owner_id: Id | None
    """Null only if no request of the chat contained the owner."""
    owner_name: str
    organization_id: Id | None
    """Null only if no request of the chat contained the organization."""
    template: JobTemplate
    parameters: dict[str, str]
    """A value for every parameter of the template, as text. Only this message contains the values
    of sensitive parameters."""
    not_after: Timestamp
    """If a provisioner receives the job for the first time after this time, it must not build, but
    publish `build_canceled`."""
    preset_id: NotRequired[Id]
    ttl_ms: NotRequired[int]
    """workspaced stops the workspace this many milliseconds after the build succeeded, unless somebody uses it."""
    activity_seconds: int
    """How often agents report activity while it lasts: a third of what it puts the end of the lifetime off by. 0: never,
    because nothing is put off."""


class BuildCancel(TypedDict):
    """A build that must end.

    The provisioner that works on it or receives its job ends it and publishes `build_canceled`; all
    others ignore the message.
    """

    chat_id: Id
    workspace_id: Id
    build_id: Id


class LogAppended(TypedDict):
    """Output of a build or of an agent's scripts."""

    build_id: Id
    origin: Literal["provisioner", "agent"]
    stage: str
    """The part of the build or scripts that wrote the output."""
    level: str
    """workspaced's own provisioner and agent use `info`, `warn` and `error`."""
    output: str
    """One or more lines, at most 32 KiB."""
    sequence: int
    """Counts from 1 for each build and origin. Readers sort by it and discard repeats."""


class LogLine(TypedDict, total=False):
    """The data of a stored `log_appended`. A key that the sender left out is absent."""

    build_id: Id
    origin: Literal["provisioner", "agent"]
    stage: str
    level: str
    output: str
    sequence: int


class LoggedEvent(CloudEvent):
    """An event as it was accepted: without unknown keys, and with `***` for sensitive values."""

    pool: NotRequired[str]
    """The pool of the provisioner that sent the event, if its credential is bound to a pool."""


class LogEntry(TypedDict):
    """An entry of a chat's event log."""

    seq: int
    """Counts from 1 within the chat."""
    event: LoggedEvent
    outcome: Literal["moved", "changed", "kept", "repeat", "stale", "foreign", "ignored"]
    """The effect of the event. `moved`: the state changed. `changed`: another key changed. `kept`:
    the event may have an effect later. Events with any other outcome had no effect."""
    state_before: WireState
    state_after: WireState
    version: int | None
    """The version that the event caused; null if it caused none."""
    at: Timestamp
    """When the event was stored."""
    cause: NotRequired[ShownCause]
    """The event that caused this one, if workspaced itself created this one."""
    deadline: NotRequired[Timestamp]
    """When the limit of the new state passes, if the event set a limit."""
    notice: NotRequired[str]
    """Text for people: which parts of the event were changed or discarded when it was accepted."""


class Readiness(TypedDict, total=False):
    """Why a running workspace is not fully ready. A ready workspace has none of these keys."""

    agent_status: Literal["no_agent", "selection_error", "not_ready"]
    """Why no agent is connected: the template has none (`no_agent`), none can be chosen
    (`selection_error`), or the chosen one did not connect in time or before the call was canceled
    (`not_ready`)."""
    agent_error: str
    """Text for people about `agent_status`."""
    startup_scripts: Literal[
        "startup_scripts_failed", "startup_scripts_timeout", "startup_scripts_unknown"
    ]
    """The result of the startup scripts. `startup_scripts_unknown`: the call was canceled before they
    ended."""
    lifecycle_state: Lifecycle
    """The agent's newest lifecycle, if the startup scripts failed."""


class ToolError(TypedDict):
    """The call itself was wrong: a configuration, an argument, a lookup or a permission."""

    error: str
    """Text for people and models."""


class BuildFailure(TypedDict):
    """The build failed, timed out, was canceled or was superseded; or the call was canceled."""

    error: str
    """Text for people and models."""
    build_id: Id
    workspace_id: NotRequired[Id]
    """The workspace of that build. Absent only if an earlier version of workspaced stored the call, and
    the workspace is no longer known."""


class QuotaUsage(TypedDict):
    """How much of the quota is used."""

    credits_consumed: float
    budget: float


class QuotaReached(TypedDict):
    """The build failed because the owner's quota is used up."""

    error_code: Literal["INSUFFICIENT_QUOTA"]
    error: str
    """Text for people and models."""
    title: Literal["Workspace quota reached"]
    message: str
    """Text for people and models that suggests what to do."""
    build_id: Id
    workspace_id: NotRequired[Id]
    """As in `BuildFailure`."""
    quota: NotRequired[QuotaUsage]
    """Absent if the provisioner did not report it."""


class Validation(TypedDict):
    """A field whose value is not valid."""

    field: str
    """The name of a parameter, or `name`."""
    detail: str
    """Text for people and models."""


class ValuesRefused(TypedDict):
    """Some values of the call are not valid for the template. Every wrong field is listed."""

    error: str
    detail: NotRequired[str]
    """Text for people and models that names the fields."""
    validations: list[Validation]
    template_id: NotRequired[Id]
    """Present in answers of start_workspace."""


class UnusedParameters(TypedDict, total=False):
    """An additional key of a success object if the call requested no build."""

    parameters_ignored: list[str]
    """The parameters that the call gave and that had no effect, because it requested no build."""


class Created(Readiness):
    """create_workspace created a new workspace."""

    created: Literal[True]
    workspace_id: Id
    workspace_name: str
    """`<owner>/<name>`"""
    build_id: Id


class AlreadyExists(Readiness, UnusedParameters):
    """create_workspace found a running workspace."""

    created: Literal[False]
    workspace_id: Id
    workspace_name: str
    status: Literal["already_exists"]
    message: str
    """Text for people and models."""


class AlreadyBuilt(AlreadyExists):
    """create_workspace waited for the build of a workspace that another call had requested."""

    build_id: Id
    """The build that the call waited for."""


class IsStopped(UnusedParameters):
    """create_workspace found a stopped workspace, which start_workspace starts."""

    created: Literal[False]
    workspace_id: Id
    workspace_name: str
    status: Literal["stopped"]
    message: str
    """Text for people and models."""


class StartNotes(TypedDict, total=False):
    """Additional keys in the answer of start_workspace if the start succeeds."""

    updated_to_active_version: Literal[True]
    """The template requires its active version, and the previous build used another version."""
    update_reason: str
    """Text for people and models."""
    message: str
    """Text for people and models."""
    parameters_reset: list[str]
    """Parameters whose last value the template no longer accepts. They now have their default."""


class Started(Readiness, StartNotes, UnusedParameters):
    """The start build that start_workspace requested or waited for succeeded."""

    started: Literal[True]
    workspace_id: Id
    workspace_name: str
    build_id: Id


class AlreadyRunning(Readiness, UnusedParameters):
    """start_workspace found a running workspace and requested no build."""

    started: Literal[True]
    workspace_id: Id
    workspace_name: str
    no_build: Literal[True]


class Stopped(TypedDict):
    """The stop build that stop_workspace requested succeeded."""

    stopped: Literal[True]
    workspace_id: Id
    workspace_name: str
    build_id: Id


class AlreadyStopped(TypedDict):
    """stop_workspace found a stopped workspace and requested no build."""

    stopped: Literal[True]
    workspace_id: Id
    workspace_name: str
    no_build: Literal[True]


class ListedTemplate(TypedDict):
    """A template that the chat may use."""

    id: Id
    name: str
    organization_id: Id
    display_name: NotRequired[str]
    description: NotRequired[str]


class TemplatesPage(TypedDict):
    """One page of list_templates."""

    templates: list[ListedTemplate]
    """Sorted by name."""
    count: int
    """Number of templates on this page."""
    page: Annotated[int, Field(ge=1)]
    total_pages: Annotated[int, Field(ge=1)]
    total_count: int
    """Number of templates on all pages."""


class ReadTemplateSummary(TypedDict):
    """The template itself."""

    id: Id
    name: str
    active_version_id: Id
    display_name: NotRequired[str]
    description: NotRequired[str]
    readme: NotRequired[str]
    """The folder's README.md without images and front matter: at most its first 8,000
    characters."""


class ParameterOption(TypedDict):
    """One of the values that a parameter may have."""

    name: str
    value: str
    description: NotRequired[str]


class TemplateParameter(TypedDict):
    """A parameter that the template declares."""

    name: str
    type: Literal["string", "number", "bool", "list(string)"]
    required: bool
    """Whether the parameter must have a value. If it has a default, create_workspace may omit
    it."""
    mutable: bool
    """Whether start_workspace may change the value."""
    display_name: NotRequired[str]
    description: NotRequired[str]
    default: NotRequired[str]
    """As text; `***` if the parameter is sensitive."""
    options: NotRequired[list[ParameterOption]]
    """If present, only these values are valid."""
    validation_regex: NotRequired[str]
    """An RE2 expression that must match somewhere in the value."""
    validation_min: NotRequired[float]
    validation_max: NotRequired[float]
    sensitive: NotRequired[Literal[True]]
    """If present, workspaced shows the parameter's values as `***`."""


class PresetValue(TypedDict):
    """The value that a preset gives one parameter."""

    name: str
    value: str
    """As text; `***` if the parameter is sensitive."""


class TemplatePreset(TypedDict):
    """A named set of values that a call can choose by `preset_id`."""

    id: Id
    name: str
    default: bool
    """Whether the template suggests this preset."""
    description: NotRequired[str]
    parameters: list[PresetValue]


class TemplateRead(TypedDict):
    """The result of read_template."""

    template: ReadTemplateSummary
    parameters: list[TemplateParameter]
    presets: NotRequired[list[TemplatePreset]]


CreateResult = (
    Created | AlreadyBuilt | AlreadyExists | IsStopped | BuildFailure | QuotaReached | ValuesRefused
)
StartResult = Started | AlreadyRunning | BuildFailure | QuotaReached | ValuesRefused
StopResult = Stopped | AlreadyStopped | BuildFailure | QuotaReached
ToolResult = CreateResult | StartResult | StopResult | TemplatesPage | TemplateRead | ToolError


class IgnoredKeys(TypedDict, total=False):
    """An additional key of a reply if the request had keys that nothing reads."""

    ignored: list[str]
    """The keys of the request's body, and of a tool's `args`, that this rpc or tool does not have."""


class ToolResolved(IgnoredKeys):
    """The answer to a tool call. A published answer names only unknown keys of `args` in `ignored`."""

    call_id: Token
    tool: str
    """The name of the tool in the request; empty if it could not be read."""
    is_error: bool
    """If true, the call itself was wrong, and `result` is `{"error": text}`."""
    conflict: NotRequired[Literal[True]]
    """Another request with the same `call_id` had other content. The answer is that of the first one."""
    result: ToolResult
