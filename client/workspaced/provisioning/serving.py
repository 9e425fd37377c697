"""A provisioner made of a build function: `workspaced.provisioner` makes it, `run` and `main` run it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from workspaced.build_log import BuildLog
from workspaced.errors import WorkspacedError
from workspaced.provisioning.jobs import BuildFailed, Built, Job, JobHead, StartJob, read_job
from workspaced.provisioning.journal import Build, Journal, Workspace, locked
from workspaced.provisioning.link import Link, NatsLink, connected
from workspaced.provisioning.masking import Mask
from workspaced.provisioning.session import BUILDS, Session
from workspaced.provisioning.templates import Templates

if TYPE_CHECKING:
    import ssl

_ERROR_SIZE: Final = 60_000
_OUTPUT_SIZE: Final = 4096

BuildFunction = Callable[[Job], Awaitable[Built | None]]
CleanUp = Callable[[Job], Awaitable[None]]
_log = logging.getLogger(__name__)


class CannotServe(WorkspacedError):
    """The provisioner can't work with this key, this pool or this directory; the text says what to do."""


class FunctionBuilds:
    """Builds with a function, and hides sensitive parameters in what it writes and raises."""

    def __init__(
        self,
        link: Link,
        templates: Templates,
        name: str,
        build: BuildFunction,
        clean_up: CleanUp | None,
    ) -> None:
        self._link, self._templates, self._name = link, templates, name
        self._build, self._clean_up = build, clean_up

    def read(self, body: bytes) -> Job:
        """Read a job. Raises BadJob."""
        return read_job(body, Job, StartJob)

    def new_log(self, head: JobHead, ledger: Path) -> BuildLog:
        """Return the log of a build."""
        return BuildLog(
            head.chat_id,
            head.build_id,
            "provisioner",
            f"/provisioner/{self._name}",
            self._link.send_log,
            ledger=ledger,
            traceparent=head.traceparent,
        )

    def begin(self, job: Job, record: Workspace) -> None:
        """Do nothing: the record needs nothing else."""

    async def build(self, job: Job, record: Workspace, log: BuildLog) -> Built:
        """Call the function. Raises BuildFailed."""
        del record
        mask = await self._attach(job, log)
        try:
            return await self._build(job) or Built()
        except BuildFailed as error:
            raise BuildFailed(
                _shown(str(error), mask), error_code=error.error_code, quota=error.quota
            ) from None
        except Exception as error:  # noqa: BLE001 — any error of the function ends its build
            _report("the build function failed", job, error, mask)
            text = f"{type(error).__name__}: {error}" if str(error) else repr(error)
            raise BuildFailed(_shown(text, mask)) from None

    async def clean_up(self, job: Job, record: Workspace, log: BuildLog) -> None:
        """Call the function that removes what a canceled build has left. Raises BuildFailed."""
        del record
        if self._clean_up is None:
            return
        mask = await self._attach(job, log)
        try:
            await self._clean_up(job)
        except Exception as error:  # noqa: BLE001 — any error of the function
            _report("the clean-up function failed", job, error, mask)
            raise BuildFailed(_shown(str(error), mask)) from None

    async def abandon(self, record: Workspace, build: Build) -> None:
        """Warn if something may be left: the clean-up function needs the job, and must not touch a newer build."""
        if self._clean_up is not None and record.newest is build:
            _log.warning(
                "build %s of workspace %s is canceled without its job; the clean-up function is not called",
                *(build.build_id, record.workspace_id),
            )

    def ended(self, record: Workspace) -> None:
        """Do nothing: the function has done everything."""

    def resend(self) -> None:
        """Do nothing: the function has nothing else to publish."""

    async def _attach(self, job: Job, log: BuildLog) -> Mask:
        values = await self._templates.sensitive_values(self._link, job.archive, job.parameters)
        mask = await asyncio.to_thread(Mask, values)
        job.attach(self._link, log, mask, self._templates)
        return mask


class Provisioner:
    """Serves one pool with one build function. `workspaced.provisioner` makes it; `run` runs it."""

    def __init__(
        self,
        build: BuildFunction,
        *,
        pool: str,
        name: str,
        key: str | Path | None = None,
        url: str | None = None,
        directory: str | Path | None = None,
        concurrency: int = BUILDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.pool, self.name = pool, name
        self._build_function, self._key, self._url, self._tls = build, key, url, tls
        self._clean_up: CleanUp | None = None
        self._directory = Path(directory) if directory is not None else _default_directory(name)
        self._concurrency = concurrency
        self._session: Session[Job, Workspace, BuildLog] | None = None
        self.__doc__ = build.__doc__ or self.__doc__

    async def __call__(self, job: Job) -> Built | None:
        """Call the build function, as a test of it does."""
        return await self._build_function(job)

    def clean_up(self, function: CleanUp) -> CleanUp:
        """Decorate the function that removes what a canceled build has left, before it is reported.

        Example:
            @build.clean_up
            async def remove(job):
                shutil.rmtree(job.workspace_id, ignore_errors=True)

        """
        self._clean_up = function
        return function

    @property
    def workspaces(self) -> list[Workspace]:
        """The workspaces that were built here, as the journal knows them, while `run` runs."""
        return self._running.journal.workspaces()

    async def run(self, url: str | None = None) -> None:
        """Serve the pool until cancelled; running builds are then handed back, and begin again.

        Raises CannotServe if the key, the pool or the directory can't be used.
        """
        url = url or self._url or os.environ.get("WORKSPACED_NATS_URL")
        key = self._key or os.environ.get("WORKSPACED_CREDENTIALS")
        if not url or not key:
            missing = "no NATS is named: pass url=, or set WORKSPACED_NATS_URL"
            raise CannotServe(
                missing if not url else "no key is named: pass key=, or set WORKSPACED_CREDENTIALS"
            )
        try:
            with locked(self._directory):
                async with connected(
                    url, key, name=f"provisioner {self.name}", tls=self._tls
                ) as connection:
                    link = NatsLink(connection)
                    templates = Templates(self._directory / "templates")
                    self._session = Session(
                        link,
                        FunctionBuilds(
                            link, templates, self.name, self._build_function, self._clean_up
                        ),
                        Journal(self._directory / "journal", Workspace),
                        pool=self.pool,
                        name=self.name,
                        directory=self._directory,
                        concurrency=self._concurrency,
                    )
                    await self._session.run()
        except BlockingIOError:
            raise CannotServe(
                f"{self._directory} is in use by another provisioner: stop it, or pass another name or directory="
            ) from None
        except WorkspacedError as error:
            raise CannotServe(
                f"provisioner {self.name} can't serve pool {self.pool}: {error}; issue a key with "
                f"`workspaced credentials issue --role provisioner --pool {self.pool} --name {self.name}`"
            ) from error
        finally:
            self._session = None

    def main(self, url: str | None = None) -> None:
        """Run as a program until SIGTERM or SIGINT; ends the process with status 1 if it can't serve."""
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        sys.exit(asyncio.run(self._until_signal(url)))

    async def _until_signal(self, url: str | None) -> int:
        serving = asyncio.ensure_future(self.run(url))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        try:
            await serving
        except asyncio.CancelledError:
            return 0
        except CannotServe as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201 — this is a program's last word
            return 1
        return 0

    async def agent_exited(
        self,
        workspace_id: str,
        agent_id: str,
        *,
        exit_code: int | None = None,
        signal: str | None = None,
        output: str | None = None,
    ) -> None:
        """Report that an agent's process or container is gone and will not be started again.

        `signal` is a name without `SIG`; of `output`, the last 4 KiB are kept.
        """
        if output is not None:
            output = output.encode(errors="replace")[-_OUTPUT_SIZE:].decode(errors="ignore")
        given = {"exit_code": exit_code, "signal": signal, "output": output}
        more = {key: value for key, value in given.items() if value is not None}
        await self._running.report_exit(workspace_id, agent_id, more)

    async def workspace_stopped(self, workspace_id: str) -> None:
        """Report that a workspace stopped without being asked, and its data is still there."""
        await self._running.report_stop(workspace_id)

    async def workspace_deleted(self, workspace_id: str) -> None:
        """Report that a workspace and its data are gone."""
        await self._running.report_deletion(workspace_id)

    @property
    def _running(self) -> Session[Job, Workspace, BuildLog]:
        if self._session is None:
            raise CannotServe("the provisioner does not run: await run() in a task first")
        return self._session


def provisioner(
    *,
    pool: str,
    name: str,
    key: str | Path | None = None,
    url: str | None = None,
    directory: str | Path | None = None,
    concurrency: int = BUILDS,
    tls: ssl.SSLContext | None = None,
) -> Callable[[BuildFunction], Provisioner]:
    """Make a provisioner of the function that builds one job.

    `key` is an NKey seed or the file that contains it (else `WORKSPACED_CREDENTIALS`), `url` that of
    NATS (else `WORKSPACED_NATS_URL`); the journal lies in `directory`, by default below
    `~/.local/state/workspaced`. At most `concurrency` workspaces are built side by side.

    Example:
        @workspaced.provisioner(pool="mine", name="mine-1", key="mine-1.nk")
        async def build(job: workspaced.Job) -> workspaced.Built:
            job.log(f"{job.transition} of {job.workspace_name}")
            return workspaced.Built()

        build.main("nats://localhost:4222")

    """

    def made(build: BuildFunction) -> Provisioner:
        return Provisioner(
            build,
            pool=pool,
            name=name,
            key=key,
            url=url,
            directory=directory,
            concurrency=concurrency,
            tls=tls,
        )

    return made


def _default_directory(name: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "workspaced" / f"provisioner-{name}"


def _report(what: str, job: Job, error: Exception, mask: Mask) -> None:
    """Write an error into the provisioner's own log, which must not show secrets either."""
    trace = mask("".join(traceback.format_exception(error)))
    _log.error("build %s: %s\n%s", job.build_id, what, trace)


def _shown(text: str, mask: Mask) -> str:
    return mask(text)[-_ERROR_SIZE:] or "The build failed."
