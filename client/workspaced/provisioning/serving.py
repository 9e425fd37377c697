"""A provisioner: it takes the jobs of a pool, calls a build function for each, and reports what became of it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import NAMESPACE_URL, uuid5

from workspaced import subjects
from workspaced.provisioning.build_log import BuildLog
from workspaced.provisioning.events import Fact, new_fact
from workspaced.provisioning.jobs import (
    BuildFailed,
    Built,
    Job,
    JobHead,
    read_cancel,
    read_job,
)
from workspaced.provisioning.journal import Build, Journal, Workspace, locked
from workspaced.provisioning.link import (
    Link,
    LinkError,
    LinkRefused,
    back_off,
    cancel_and_wait,
    connected,
    together,
)
from workspaced.provisioning.masking import Mask
from workspaced.provisioning.templates import Templates

if TYPE_CHECKING:
    import ssl

    from nats.aio.msg import Msg

HEARTBEAT: Final = 5.0
"""Seconds between two `+WPI` of a job; without one for 30 s it is delivered again."""
_ACK_WAIT: Final = 30.0
_MOST_JOBS: Final = 64
"""Jobs taken and not answered yet, those that wait for another job of their workspace included."""
_SPREAD: Final = 1.0
"""Seconds over which provisioners spread the answers to a request that reaches all of them."""
_CANCELS_KEPT: Final = 10_000
_ERROR_SIZE: Final = 60_000

BuildFunction = Callable[[Job], Awaitable[Built | None]]
CleanUp = Callable[[Job], Awaitable[None]]
_log = logging.getLogger(__name__)


class CannotServe(Exception):
    """The provisioner can't work with this key, this pool or this directory; the text says what to do."""


@dataclass(slots=True, eq=False)
class _Queued:
    """A delivered job in its workspace's queue."""

    head: JobHead
    job: Job | None
    problem: str
    message: Msg
    late: bool
    highest: int
    cancel: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Queue:
    current: _Queued
    waiting: deque[_Queued] = field(default_factory=deque)


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
        concurrency: int = 8,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.pool, self.name = pool, name
        self._build_function, self._key, self._url, self._tls = build, key, url, tls
        self._clean_up: CleanUp | None = None
        self._directory = Path(directory) if directory is not None else _default_directory(name)
        self._concurrency = concurrency
        self._session: _Session | None = None
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
                    url, key, role="provisioner", name=f"provisioner {self.name}", tls=self._tls
                ) as link:
                    self._session = _Session(
                        link,
                        pool=self.pool,
                        name=self.name,
                        directory=self._directory,
                        concurrency=self._concurrency,
                        build=self._build_function,
                        clean_up=self._clean_up,
                    )
                    await self._session.run()
        except BlockingIOError:
            raise CannotServe(
                f"{self._directory} is in use by another provisioner: stop it, or pass another name or directory="
            ) from None
        except LinkRefused as error:
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
        given = {"exit_code": exit_code, "signal": signal, "output": output and output[-4096:]}
        more = {key: value for key, value in given.items() if value is not None}
        await self._running.report_exit(workspace_id, agent_id, more)

    async def workspace_stopped(self, workspace_id: str) -> None:
        """Report that a workspace stopped without being asked, and its data is still there."""
        await self._running.report_stop(workspace_id)

    async def workspace_deleted(self, workspace_id: str) -> None:
        """Report that a workspace and its data are gone."""
        await self._running.report_deletion(workspace_id)

    @property
    def _running(self) -> _Session:
        if self._session is None:
            raise CannotServe("the provisioner does not run: await run() in a task first")
        return self._session


class _Session:
    """One run of a provisioner, from its connection to the end of it."""

    def __init__(
        self,
        link: Link,
        *,
        pool: str,
        name: str,
        directory: Path,
        concurrency: int,
        build: BuildFunction,
        clean_up: CleanUp | None,
    ) -> None:
        self._link, self._pool, self._name = link, pool, name
        self._build_function, self._clean_up = build, clean_up
        self.journal = Journal(directory / "journal")
        self._templates = Templates(directory / "templates")
        self._ledgers = directory / "logs"
        self._ledgers.mkdir(mode=0o700, exist_ok=True)
        self._alive = directory / "alive"
        """A file whose time is that of the last `+WPI`: until then, jobs in hand are ours."""
        self._slots = asyncio.Semaphore(concurrency)
        self._queues: dict[str, _Queue] = {}
        self._unanswered: set[_Queued] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancels: dict[str, None] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until cancelled. Raises LinkRefused, LinkError."""
        resend, resend_open = asyncio.Event(), asyncio.Event()
        self._link.on_reconnect.append(resend_open.set)
        await self._subscribe(
            subjects.cancel(self._pool), lambda message: self._cancel(message.data)
        )
        await self._subscribe(subjects.RESEND, lambda _: resend.set())
        await self._hand_back_unfinished()
        resend.set()  # workers may have missed the last facts of the process before
        _log.info("provisioner %s serves pool %s", self._name, self._pool)
        try:
            await together(
                self._take_jobs(),
                self._keep_alive(),
                self._publish_again(resend, self.journal.newest_facts, _SPREAD),
                self._publish_again(resend_open, self.journal.open_facts, 0),
                self._failed,
            )
        finally:
            await cancel_and_wait(*self._tasks)
            self._alive.unlink(missing_ok=True)
            for queued in self._unanswered:
                await self._link.reply(queued.message.reply, b"-NAK")

    async def _subscribe(self, subject: str, handle: Callable[[Msg], None]) -> None:
        attempt = 0
        while True:
            try:
                return await self._link.subscribe(subject, handle)
            except LinkError as error:
                _log.info("%s, trying again", error)
            await back_off(attempt)
            attempt += 1

    # -- jobs ----------------------------------------------------------------------------------

    async def _take_jobs(self) -> None:
        async with aclosing(
            self._link.pull(subjects.next_jobs(self._pool), _MOST_JOBS)
        ) as messages:
            async for message in messages:
                head, job, problem = read_job(message.data)
                if head is None:
                    _log.error("a job of pool %s can't be read: %s", self._pool, problem)
                    # It can't be answered; without an ack it would be delivered for ever.
                    await self._link.reply(message.reply, b"+ACK")
                    continue
                self._accept(_Queued(head, job, problem, message, bool(job and job.late), -1))

    def _accept(self, queued: _Queued) -> None:
        head = queued.head
        self._unanswered.add(queued)
        with suppress(OSError):
            self._alive.touch()
        queued.highest = self.journal.of(head.workspace_id, head.chat_id).highest
        if head.build_id in self._cancels:
            queued.cancel.set()
        queue = self._queues.get(head.workspace_id)
        if queue is None:
            queue = self._queues[head.workspace_id] = _Queue(queued)
            self._spawn(self._work(queue))
            return
        for other in queue.waiting:
            other.highest = max(other.highest, head.build_number)
            queued.highest = max(queued.highest, other.head.build_number)
        queue.waiting.append(queued)
        if head.transition == "delete" and queue.current.head.build_number < head.build_number:
            queue.current.cancel.set()

    async def _work(self, queue: _Queue) -> None:
        """Answer the jobs of one workspace, one after the other."""
        try:
            while True:
                queued = queue.current
                async with self._slot(queued):
                    await self._answer(queued)
                if not queue.waiting:
                    return
                queue.current = queue.waiting.popleft()
        finally:
            del self._queues[queue.current.head.workspace_id]

    @asynccontextmanager
    async def _slot(self, queued: _Queued) -> AsyncIterator[None]:
        """Hold one of the slots; a job that is canceled while it waits needs none."""
        acquired = asyncio.ensure_future(self._slots.acquire())
        canceled = asyncio.ensure_future(queued.cancel.wait())
        try:
            await asyncio.wait((acquired, canceled), return_when=asyncio.FIRST_COMPLETED)
            canceled.cancel()
            if not acquired.done():
                await cancel_and_wait(acquired)
            yield
        finally:
            await cancel_and_wait(acquired, canceled)
            if not acquired.cancelled():
                self._slots.release()

    async def _answer(self, queued: _Queued) -> None:
        """Answer a job, and ack it when its terminal fact is stored."""
        try:
            await self._publish(*await self._facts_for(queued))
        except LinkRefused as error:
            # The key can't report at all: another provisioner has to take the job.
            if not self._failed.done():
                self._failed.set_exception(error)
            return
        except OSError as error:
            _log.exception("build %s can't be answered", queued.head.build_id)
            if not self._failed.done():
                self._failed.set_exception(CannotServe(f"the journal can't be written: {error}"))
            return
        self._unanswered.discard(queued)
        await self._link.reply(queued.message.reply, b"+ACK")

    async def _facts_for(self, queued: _Queued) -> list[Fact]:
        """Return the facts that still have to be published: all of a repeat, else the terminal one."""
        head = queued.head
        record = self.journal.of(head.workspace_id, head.chat_id)
        build = record.find(head.build_id)
        if build is not None and build.finished:
            return build.facts
        begun = build is not None
        if build is None:
            build = record.add(Build(head.build_id, head.build_number, head.transition))
        superseded = head.build_number < max(queued.highest, record.highest)
        if not begun and (superseded or queued.late or queued.cancel.is_set()):
            return [self._finish(record, build, head, "build_canceled", {})]
        log = BuildLog(
            self._link,
            name=self._name,
            chat_id=head.chat_id,
            build_id=head.build_id,
            ledger=self._ledgers / f"{head.build_id}.json",
        )
        async with log.running():
            if queued.job is None:
                error = {"error": f"The job can't be read: {queued.problem}"}
                return [self._finish(record, build, head, "build_failed", error)]
            if superseded:
                queued.cancel.set()
            fact = await self._build(queued, queued.job, record, build, log)
        (self._ledgers / f"{head.build_id}.json").unlink(missing_ok=True)
        return [fact]

    async def _build(
        self, queued: _Queued, job: Job, record: Workspace, build: Build, log: BuildLog
    ) -> Fact:
        """Report that the build begins, run it, and return its terminal fact."""
        job.again = bool(build.facts)
        job.attach(self._link, log, self._templates, queued.cancel)
        record.name, build.reply = job.workspace_name, queued.message.reply
        if not build.facts:
            build.facts.append(
                new_fact(
                    "build_started",
                    self._name,
                    job.chat_id,
                    {**job.data(), **_names(job)},
                    job.traceparent,
                )
            )
        self.journal.save(record)
        # In a task: the build goes on even if NATS is away.
        started = asyncio.create_task(self._publish(build.facts[0]))
        try:
            values = await self._templates.sensitive_values(self._link, job.archive, job.parameters)
            log.mask = await asyncio.to_thread(Mask, values)
            type_name, data = await self._outcome(queued, job, log)
            fact = self._finish(record, build, job, type_name, data)
            await started
        finally:
            await cancel_and_wait(started)
        return fact

    async def _outcome(
        self, queued: _Queued, job: Job, log: BuildLog
    ) -> tuple[str, dict[str, Any]]:
        """Run the build function to its end, or until the build is canceled."""
        working: asyncio.Future[Built | None] = asyncio.ensure_future(self._called(job))
        canceled = asyncio.ensure_future(queued.cancel.wait())
        try:
            await asyncio.wait((working, canceled), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(working, canceled)
        built: Built | None = None
        try:
            built = working.result()
        except asyncio.CancelledError:
            if not queued.cancel.is_set():
                return "build_failed", {"error": "The build function has cancelled itself."}
        except Exception as error:  # noqa: BLE001 — any error of the function ends its build
            if not queued.cancel.is_set():
                if not isinstance(error, BuildFailed):
                    _report("the build function failed", job, error, log)
                return "build_failed", _failure(error, log)
            _report("the build function failed when it was canceled", job, error, log)
        else:
            more = {"agents": [agent.data() for agent in built.agents] if built else []}
            if job.template.version_id:
                more["template_version_id"] = job.template.version_id  # type: ignore[assignment]
            return "build_succeeded", more
        log.write("This build is canceled.", job.transition, "warn")
        if self._clean_up is not None:
            try:
                await self._clean_up(job)
            except Exception as error:  # noqa: BLE001 — it is not ours
                _report("what the build left could not be removed", job, error, log)
                log.write(f"What the build left could not be removed: {error}", "delete", "warn")
        return "build_canceled", {}

    async def _called(self, job: Job) -> Built | None:
        if job.cancel_requested:
            raise asyncio.CancelledError
        return await self._build_function(job)

    def _finish(
        self,
        record: Workspace,
        build: Build,
        head: JobHead,
        type_name: str,
        data: dict[str, Any],
    ) -> Fact:
        """Save the end of a build before it is published. Raises OSError."""
        fact = new_fact(
            type_name, self._name, head.chat_id, {**head.data(), **data}, head.traceparent
        )
        build.facts.append(fact)
        build.finished = True
        if type_name == "build_succeeded":
            record.running = head.transition == "start"
            record.deleted = head.transition == "delete"
            record.agents = [agent["id"] for agent in data.get("agents", ())]
        self.journal.save(record)
        _log.info(
            "%s %s of workspace %s: %s",
            head.transition,
            head.build_id,
            head.workspace_id,
            type_name,
        )
        return fact

    # -- facts without a job -------------------------------------------------------------------

    async def report_exit(self, workspace_id: str, agent_id: str, more: dict[str, Any]) -> None:
        """Report that an agent is gone, if it is one of the workspace's."""
        record = self.journal.find(workspace_id)
        if record is None or agent_id not in record.agents:
            return
        build = next(
            one
            for one in reversed(record.builds)
            if one.finished and any(agent_id in fact.body for fact in one.facts)
        )
        data = {
            "workspace_id": workspace_id,
            "build_id": build.build_id,
            "build_number": build.number,
            "agent_id": agent_id,
            **more,
        }
        await self._add(record, build, ("agent_exited", data))

    async def report_stop(self, workspace_id: str) -> None:
        """Report a stop made elsewhere, unless the workspace does not run or a build is under way."""
        record = self.journal.find(workspace_id)
        if record is None or not record.running or workspace_id in self._queues:
            return
        number = record.highest + 1
        build_id = str(uuid5(NAMESPACE_URL, f"workspaced:{workspace_id}:{number}"))
        build = record.add(Build(build_id, number, "stop", finished=True))
        record.running, record.agents = False, []
        data = {
            "workspace_id": workspace_id,
            "build_id": build_id,
            "build_number": number,
            "transition": "stop",
        }
        await self._add(
            record, build, ("build_started", data), ("build_succeeded", {**data, "agents": []})
        )

    async def report_deletion(self, workspace_id: str) -> None:
        """Report that a workspace is gone, unless a build of it is under way or it was deleted."""
        record = self.journal.find(workspace_id)
        if record is None or record.deleted or workspace_id in self._queues:
            return
        build = record.newest
        if build is None:
            return
        record.running, record.deleted, record.agents = False, True, []
        data = {
            "workspace_id": workspace_id,
            "build_id": build.build_id,
            "build_number": build.number,
            "transition": build.transition,
        }
        await self._add(record, build, ("workspace_deleted", data))

    async def _add(
        self, record: Workspace, build: Build, *facts: tuple[str, dict[str, Any]]
    ) -> None:
        made = [new_fact(kind, self._name, record.chat_id, data) for kind, data in facts]
        build.facts += made
        self.journal.save(record)
        await self._publish(*made)

    # -- the bus -------------------------------------------------------------------------------

    async def _publish(self, *facts: Fact) -> None:
        for fact in facts:
            await self._link.store(fact.subject, fact.body.encode(), fact.identity)

    async def _publish_again(
        self, requested: asyncio.Event, facts: Callable[[], list[Fact]], spread: float
    ) -> None:
        """Publish facts again, unchanged, on each request, within `spread` seconds."""
        while True:
            await requested.wait()
            await asyncio.wait((self._failed,), timeout=random.uniform(0, spread))  # noqa: S311 — no secret
            requested.clear()
            await self._publish(*facts())

    async def _keep_alive(self) -> None:
        """Tell the server regularly that the jobs in hand are in progress."""
        while True:
            await asyncio.wait((self._failed,), timeout=HEARTBEAT)
            if self._unanswered and self._link.connected:
                for queued in list(self._unanswered):
                    await self._link.reply(queued.message.reply, b"+WPI")
                with suppress(OSError):
                    self._alive.touch()

    async def _hand_back_unfinished(self) -> None:
        """Hand back the jobs that the process before this one was building when it was killed.

        Later than this, such a job may be in the hands of another provisioner.
        """
        with suppress(FileNotFoundError):
            if time.time() - self._alive.stat().st_mtime < _ACK_WAIT - HEARTBEAT:
                for build in self.journal.unfinished():
                    if build.reply:
                        await self._link.reply(build.reply, b"-NAK")

    def _cancel(self, body: bytes) -> None:
        """End the build that a request names, or remember it until its job arrives."""
        if (named := read_cancel(body)) is None:
            return
        workspace_id, build_id = named
        self._cancels[build_id] = None
        if len(self._cancels) > _CANCELS_KEPT:
            del self._cancels[next(iter(self._cancels))]
        queue = self._queues.get(workspace_id)
        jobs = [] if queue is None else [queue.current, *queue.waiting]
        found = [queued for queued in jobs if queued.head.build_id == build_id]
        for queued in found:
            queued.cancel.set()
        record = self.journal.find(workspace_id)
        build = record.find(build_id) if record else None
        if not found and build is not None and build.finished:
            self._spawn(self._publish(build.facts[-1]))  # whoever asks has missed its end

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._failed.done():
            self._failed.set_exception(error)


def provisioner(
    *,
    pool: str,
    name: str,
    key: str | Path | None = None,
    url: str | None = None,
    directory: str | Path | None = None,
    concurrency: int = 8,
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


def _names(job: Job) -> dict[str, str]:
    """Return names and ids with which a chat can recover a workspace that its database has lost."""
    given = {
        "workspace_name": job.workspace_name,
        "owner_name": job.owner_name,
        "template_id": job.template.id,
        "template_version_id": job.template.version_id,
    }
    return {key: value for key, value in given.items() if value}


def _report(what: str, job: Job, error: Exception, log: BuildLog) -> None:
    """Write an error into the provisioner's own log, which must not show secrets either."""
    trace = log.mask("".join(traceback.format_exception(error)))
    _log.error("build %s: %s\n%s", job.build_id, what, trace)


def _failure(error: Exception, log: BuildLog) -> dict[str, Any]:
    if isinstance(error, BuildFailed):
        text, more = str(error), error.details()
    else:
        text, more = f"{type(error).__name__}: {error}" if str(error) else repr(error), {}
    shown = log.mask(text)[-_ERROR_SIZE:]
    log.write(shown, "build", "error")
    return {"error": shown or "The build failed.", **more}
