"""The argument and the result of a build function: the job, the agents it made, and its failure."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import uuid4

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from workspaced.build_log import BuildLog, Level
from workspaced.errors import WorkspacedError
from workspaced.provisioning.link import Link
from workspaced.provisioning.masking import Mask
from workspaced.provisioning.templates import BadTemplate, Templates, unpack

Transition = Literal["start", "stop", "delete"]
_UUID: Final = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_TYPE: Final = "workspaced.build_requested.v1"
_CANCEL: Final = "workspaced.build_cancel.v1"
_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}[!-~]*")
_MOST_NAMED: Final = 5
"""Wrong fields that an error names at most."""


class BuildFailed(Exception):
    """Raise it in a build function: the build fails with this text, and the code if there is one."""

    def __init__(
        self,
        error: str,
        *,
        error_code: str | None = None,
        quota: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(error)
        self.error_code, self.quota = error_code, quota

    def data(self) -> dict[str, Any]:
        """Return the fields of `build_failed`."""
        given = {"error": str(self), "error_code": self.error_code, "quota": self.quota}
        return {key: value for key, value in given.items() if value is not None}


class QuotaExceeded(BuildFailed):
    """Raise it in a build function if the owner's quota does not allow this workspace."""

    def __init__(self, error: str, *, credits_consumed: float, budget: float) -> None:
        quota = {"credits_consumed": credits_consumed, "budget": budget}
        super().__init__(error, error_code="INSUFFICIENT_QUOTA", quota=quota)


class BadJob(Exception):
    """A job that can't be worked on. `head` is set if its build can at least be answered."""

    def __init__(self, problem: str, head: JobHead | None = None) -> None:
        super().__init__(problem)
        self.head = head


@dataclass(frozen=True, slots=True)
class BuiltAgent:
    """An agent of a workspace. Its id belongs to one build: a later build makes new ones."""

    name: str
    id: str = field(default_factory=lambda: str(uuid4()))
    parent_id: str | None = None
    display_order: int | None = None

    def data(self) -> dict[str, Any]:
        """Return the entry of `build_succeeded`."""
        given = {"parent_id": self.parent_id, "display_order": self.display_order}
        more = {key: value for key, value in given.items() if value is not None}
        return {"id": self.id, "name": self.name, **more}


@dataclass(frozen=True, slots=True)
class Built:
    """The result of a build that succeeded."""

    agents: Sequence[BuiltAgent] = ()


class AgentCredential(BaseModel):
    """The key of one agent: it connects to NATS with seed (and jwt, if there is one) and inbox prefix."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: str = Field(repr=False)
    inbox_prefix: str
    expires_at: AwareDatetime
    jwt: str | None = Field(default=None, repr=False)


class _Data(BaseModel):
    """Data of the wire: unknown keys are ignored, and null is the same as absent."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data


class TemplateArchive(_Data):
    """The packed folder of a template's version."""

    sha256: str
    size: int


class JobTemplate(_Data):
    """The template of a job; `spec` has the `[build]` and `[[agent]]` tables of its `template.toml`."""

    id: str = ""
    name: str = ""
    version_id: str | None = None
    spec: dict[str, Any] = {}
    archive: TemplateArchive | None = None


class JobHead(_Data):
    """The part of a job without which nothing can be answered."""

    chat_id: str = Field(pattern=_UUID)
    workspace_id: str = Field(pattern=_UUID)
    build_id: str = Field(pattern=_UUID)
    build_number: Annotated[int, Field(ge=0, lt=2**53)]
    transition: Transition
    traceparent: str | None = None

    def data(self) -> dict[str, Any]:
        """Return the keys that every fact about this build carries."""
        keys = ("workspace_id", "build_id", "build_number", "transition")
        return {key: getattr(self, key) for key in keys}


class Job(JobHead):
    """One build that workspaced requests: what to do (`transition`), and for which workspace.

    Example:
        if job.transition == "start":
            await job.unpack(Path("workspaces") / job.workspace_id)
            job.log("the files are there")

    """

    workspace_name: str = ""
    owner_id: str | None = None
    owner_name: str = ""
    organization_id: str | None = None
    template: JobTemplate = JobTemplate()
    parameters: dict[str, str] = Field(default={}, repr=False)
    preset_id: str | None = None
    ttl_ms: int | None = None
    activity_seconds: Annotated[float, Field(ge=0)] = 60
    """How often an agent reports activity while it lasts; 0: never. Hand it to your agents."""
    not_after: AwareDatetime | None = None
    again: bool = False
    """An earlier process has begun this build and was killed: something of it may be left."""

    _link: Link = PrivateAttr()
    _log: BuildLog = PrivateAttr()
    _mask: Mask = PrivateAttr()
    _templates: Templates = PrivateAttr()
    _cancel: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to cancel this build; its function is cancelled because of it."""
        return self._cancel.is_set()

    @property
    def late(self) -> bool:
        """Whether the time at which this job had to be taken has passed."""
        return self.not_after is not None and datetime.now(UTC) > self.not_after

    def log(self, text: str, *, stage: str = "build", level: Level = "info") -> None:
        """Write one or many lines into the build's log, which chats show live. Never waits."""
        masked = self._mask(text)
        self._log.write(stage, level, masked if masked.endswith("\n") else f"{masked}\n")

    async def unpack(self, directory: Path | str) -> None:
        """Put the files of the template into a directory, replacing those of the same name.

        Raises BadTemplate if the template can't be fetched, or contains what may not be unpacked.
        """
        archive = self.archive
        if archive is None:
            raise BadTemplate("the job has no archive")
        path = await self._templates.fetched(self._link, *archive)
        working = asyncio.ensure_future(asyncio.to_thread(unpack, path, Path(directory)))
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            # A thread can't be stopped: wait, so that nothing is written after the build's end.
            await asyncio.wait((working,))
            raise

    async def agent_credential(self, agent_id: str) -> AgentCredential:
        """Return a key for an agent of this build, with an id that you choose (a new UUID).

        Raises BuildFailed if the gateway refuses it: a newer build has taken this one's place.
        """
        request = {
            "chat_id": self.chat_id,
            "workspace_id": self.workspace_id,
            "build_id": self.build_id,
            "agent_id": agent_id,
        }
        try:
            answer = await self._link.rpc_until_answered("agent_credential", request)
        except WorkspacedError as error:
            raise BuildFailed(f"the agent gets no key: {error}") from None
        return AgentCredential.model_validate_json(answer)

    @property
    def archive(self) -> tuple[str, str, int] | None:
        """Version, SHA-256 and size of the template's archive; None if the job names none."""
        template = self.template
        if template.archive is None or template.version_id is None:
            return None
        return template.version_id, template.archive.sha256, template.archive.size

    def attach(self, link: Link, log: BuildLog, mask: Mask, templates: Templates) -> None:
        """Connect the job with the provisioner that runs it."""
        self._link, self._log, self._mask, self._templates = link, log, mask, templates

    def be_canceled_by(self, cancel: asyncio.Event) -> None:
        """Tell the job which event is set when its build is canceled."""
        self._cancel = cancel


class _StartTemplate(JobTemplate):
    id: str = Field(pattern=_UUID)
    name: str
    version_id: str = Field(pattern=_UUID)
    archive: TemplateArchive


class StartJob(Job):
    """A job that starts a workspace; it must have everything that the start needs."""

    workspace_name: str
    owner_name: str
    template: _StartTemplate
    not_after: AwareDatetime


J = TypeVar("J", bound=Job)


def read_job(body: bytes, kind: type[J], start: type[J]) -> J:
    """Read a CloudEvent from the pool's subject as a `kind`, or as a `start`. Raises BadJob."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadJob(f"not JSON: {error}") from None
    data = event.get("data") if isinstance(event, dict) else None
    if not isinstance(data, dict):
        raise BadJob("not a CloudEvent with an object as its data")
    trace = event.get("traceparent")
    traced = isinstance(trace, str) and _TRACE.fullmatch(trace) is not None
    data = {**data, "traceparent": trace if traced else None, "again": False}
    head = _head(data)
    if event.get("specversion") != "1.0" or event.get("type") != _TYPE:
        raise BadJob(f"its type is {event.get('type')!r}; this provisioner reads {_TYPE}", head)
    if head is not None and event.get("subject") != head.chat_id:
        raise BadJob(f"its subject is {event.get('subject')!r}, not its chat", head)
    if head is not None and head.transition != "start":
        return _readable_parts(data, kind)
    try:
        return start.model_validate(data)
    except ValidationError as error:
        raise BadJob(_described(error), head) from None


def _readable_parts(data: dict[str, Any], kind: type[J]) -> J:
    """Return a stop or delete job without the fields that can't be read.

    A workspace can be stopped and deleted even if its template is invalid: a step that cannot be read is not run.
    """
    given = data.get("parameters")
    texts = given.items() if isinstance(given, dict) else ()
    data = {**data, "parameters": {key: text for key, text in texts if isinstance(text, str)}}
    while True:
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            data = _without(data, error.errors()[0]["loc"])


def _without(value: dict[str, Any], place: tuple[int | str, ...]) -> dict[str, Any]:
    """Return the object without the value at that path; a list on the path is dropped as a whole."""
    name, below = place[0], place[1:]
    inner = value.get(str(name))
    if below and isinstance(inner, dict) and below[0] in inner:
        return {**value, str(name): _without(inner, below)}
    return {key: kept for key, kept in value.items() if key != name}


def _head(data: dict[str, Any]) -> JobHead | None:
    try:
        return JobHead.model_validate(data)
    except ValidationError:
        return None


def read_cancel(body: bytes) -> tuple[str, str] | None:
    """Return workspace and build of a request to cancel a build; None if it is another message."""
    try:
        event: Mapping[str, Any] = json.loads(body)
        if event["type"] != _CANCEL:
            return None
        return str(event["data"]["workspace_id"]), str(event["data"]["build_id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _described(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, ('data', *one['loc'])))}: {one['msg']}"
        for one in error.errors()[:_MOST_NAMED]
    )
