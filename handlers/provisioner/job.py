"""The model of a job: the build that a worker requests, with its workspace and its template."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from handlers.publishing.agent_files import ACTIVITY_SECONDS
from handlers.template_archive import MAX_PACKED_BYTES
from statemachine.events import Id, Transition
from statemachine.leniency import describe
from statemachine.local_template import AgentTable, BuildTable


def _with_offset(moment: object) -> object:
    if isinstance(moment, str) and re.search(r"(Z|[+-]\d\d:?\d\d)$", moment) is None:
        raise ValueError("it has no UTC offset")
    return moment


Moment = Annotated[datetime, BeforeValidator(_with_offset)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_TYPE: Final = "workspaced.build_requested.v1"
_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}[!-~]*")


class BadJob(Exception):
    """A job that can't be worked on. `head` is set if its build can at least be answered."""

    def __init__(self, problem: str, head: JobHead | None = None) -> None:
        super().__init__(problem)
        self.head = head


class _JobModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class JobArchive(_JobModel):
    """Size and hash of the archive of a template's folder."""

    sha256: Sha256
    size: Annotated[int, Field(gt=0, le=MAX_PACKED_BYTES)]


class JobSpec(_JobModel):
    """The tables of `template.toml` that only the local provisioner reads."""

    build: BuildTable = BuildTable()
    agent: tuple[AgentTable, ...] = ()


class Packed(_JobModel):
    """A version of a template and its archive."""

    version_id: Id
    archive: JobArchive


class TemplateToBuild(_JobModel):
    """The version of the template that the job uses."""

    id: Id | None = None
    name: str = ""
    version_id: Id | None = None
    spec: JobSpec = JobSpec()
    archive: JobArchive | None = None

    @property
    def packed(self) -> Packed | None:
        """The archive of this version, if the job has one."""
        if self.version_id is None or self.archive is None:
            return None
        return Packed(version_id=self.version_id, archive=self.archive)


class JobHead(_JobModel):
    """The fields that are needed to answer a job."""

    chat_id: Id
    workspace_id: Id
    build_id: Id
    build_number: Annotated[int, Field(ge=0, lt=2**53)]
    transition: Transition
    traceparent: str | None = None


class Job(JobHead):
    """A job. A stop or delete needs only the head, so everything else may be missing."""

    workspace_name: str = ""
    owner_id: Id | None = None
    owner_name: str = ""
    organization_id: Id | None = None
    template: TemplateToBuild = TemplateToBuild()
    parameters: dict[str, str] = Field(default={}, repr=False)
    activity_seconds: Annotated[float, Field(ge=0)] = ACTIVITY_SECONDS
    """Agents report activity so often; 0: never."""
    not_after: Moment | None = None

    @property
    def step(self) -> str:
        """The shell command of this build."""
        return str(getattr(self.template.spec.build, self.transition))


class _StartTemplate(TemplateToBuild):
    id: Id
    name: str
    version_id: Id
    archive: JobArchive


class _Start(Job):
    """A job that starts a workspace; it must have everything that the start needs."""

    workspace_name: str
    owner_name: str
    template: _StartTemplate
    not_after: Moment


def read_job(body: bytes) -> Job:
    """Read a CloudEvent from the pool's subject. Raises BadJob."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadJob(f"not JSON: {error}") from None
    data = event.get("data") if isinstance(event, dict) else None
    if not isinstance(data, dict):
        raise BadJob("not a CloudEvent with an object as its data")
    trace = event.get("traceparent")
    traced = isinstance(trace, str) and _TRACE.fullmatch(trace) is not None
    data = {**data, "traceparent": trace if traced else None}
    head = _head(data)
    if event.get("specversion") != "1.0" or event.get("type") != _TYPE:
        raise BadJob(f"its type is {event.get('type')!r}; this provisioner reads {_TYPE}", head)
    if head is not None and event.get("subject") != head.chat_id:
        raise BadJob(f"its subject is {event.get('subject')!r}, not its chat", head)
    if head is not None and head.transition is not Transition.START:
        return _readable_parts(data)
    try:
        return _Start.model_validate(data)
    except ValidationError as error:
        raise BadJob(describe(error), head) from None


def _readable_parts(data: dict[str, Any]) -> Job:
    """Return a stop or delete job without the fields that can't be read.

    A workspace can be stopped and deleted even if its template is invalid: a step that cannot be read is not run.

    """
    given = data.get("parameters")
    texts = given.items() if isinstance(given, dict) else ()
    data = {**data, "parameters": {key: text for key, text in texts if isinstance(text, str)}}
    while True:
        try:
            return Job.model_validate(data)
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
