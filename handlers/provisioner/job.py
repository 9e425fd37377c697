"""The model of a job: the build that a worker requests, with its workspace and its template."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints
from workspaced.provisioning import jobs

from handlers.publishing.agent_files import ACTIVITY_SECONDS
from handlers.template_archive import MAX_PACKED_BYTES
from statemachine.events import Id, Transition
from statemachine.local_template import AgentTable, BuildTable

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


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


class Job(jobs.Job):
    """A job. A stop or delete needs only the head, so everything else may be missing."""

    transition: Transition  # type: ignore[assignment]  # the same texts
    owner_id: Id | None = None
    organization_id: Id | None = None
    template: TemplateToBuild = TemplateToBuild()  # type: ignore[assignment]  # with typed tables
    activity_seconds: Annotated[float, Field(ge=0)] = ACTIVITY_SECONDS

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
    not_after: AwareDatetime


def read_job(body: bytes) -> Job:
    """Read a CloudEvent from the pool's subject. Raises BadJob."""
    return jobs.read_job(body, Job, _Start)
