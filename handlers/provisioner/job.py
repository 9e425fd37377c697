"""A job as the bus brings it: which build of which workspace, from which template."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from statemachine.events import Id, Transition
from statemachine.leniency import describe

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_TYPE: Final = "workspaced.build_requested.v1"
_LARGEST: Final = 16 * 1024 * 1024


class BadJob(Exception):
    """A job that can't be worked; `head` is there when at least its build can be answered."""

    def __init__(self, problem: str, head: Head | None = None) -> None:
        super().__init__(problem)
        self.head = head


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Archive(_Read):
    """Which bytes a template's folder is packed in."""

    sha256: Sha256
    size: Annotated[int, Field(gt=0, le=_LARGEST)]


class BuildSpec(_Read):
    """The `[build]` table: a shell command for each transition, empty for none."""

    start: str = ""
    stop: str = ""
    delete: str = ""


class AgentSpec(_Read):
    """An `[[agent]]` table."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    parent: str | None = None
    display_order: int = 0
    startup_script: str = ""
    startup_timeout_seconds: Annotated[float, Field(gt=0)] = 600
    shutdown_script: str = ""
    shutdown_timeout_seconds: Annotated[float, Field(gt=0)] = 60
    env: dict[str, str | int | float | bool] = {}


class Spec(_Read):
    """The tables of `template.toml` that are the local provisioner's."""

    build: BuildSpec = BuildSpec()
    agent: Annotated[tuple[AgentSpec, ...], Field(max_length=64)] = ()


class TemplateRef(_Read):
    """The version of the template that is to be built."""

    id: Id
    name: str
    version_id: Id
    spec: Spec = Spec()
    archive: Archive


class Head(_Read):
    """Enough of a job to answer it."""

    chat_id: Id
    workspace_id: Id
    build_id: Id
    build_number: Annotated[int, Field(ge=0, lt=2**53)]
    transition: Transition
    traceparent: str | None = None


class Job(Head):
    """All of a job."""

    workspace_name: str
    owner_id: Id | None = None
    owner_name: str
    organization_id: Id | None = None
    template: TemplateRef
    parameters: dict[str, str] = Field(default={}, repr=False)
    not_after: datetime

    @property
    def step(self) -> str:
        """The shell command of this build."""
        return str(getattr(self.template.spec.build, self.transition))


def read_job(body: bytes) -> Job:
    """Read a CloudEvent from the pool's subject. Raises BadJob."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as bad:
        raise BadJob(f"not JSON: {bad}") from None
    data = event.get("data") if isinstance(event, dict) else None
    if not isinstance(data, dict):
        raise BadJob("not a CloudEvent with an object as its data")
    trace = event.get("traceparent")
    data = {**data, "traceparent": trace if isinstance(trace, str) else None}
    head = _head(data)
    if event.get("specversion") != "1.0" or event.get("type") != _TYPE:
        raise BadJob(f"its type is {event.get('type')!r}; this provisioner reads {_TYPE}", head)
    if head is not None and event.get("subject") != head.chat_id:
        raise BadJob(f"its subject is {event.get('subject')!r}, not its chat", head)
    try:
        job = Job.model_validate(data)
    except ValidationError as bad:
        raise BadJob(describe(bad), head) from None
    if re.search(r"(Z|[+-]\d\d:?\d\d)$", str(data.get("not_after"))) is None:
        raise BadJob("data.not_after: it has no offset", head)
    return job


def _head(data: dict[str, Any]) -> Head | None:
    try:
        return Head.model_validate(data)
    except ValidationError:
        return None
