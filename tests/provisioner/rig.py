"""The surroundings of a provisioner and its agents: jobs, a gateway, and a record of their messages."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bus import Bus, Message, ServiceError
from bus.streams import IN, JOB, LOG, PRESENCE, WORKER_IN, pool_consumer
from statemachine import codec
from tests.rigs.messages import Event, cloud_event, new_id

PATIENCE = 20.0
"""Seconds after which a test gives up. Tests that pass never wait that long."""

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Files = Mapping[str, str]


def packed(files: Files) -> bytes:
    """Return files as the archive of a template version; all are executable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o755
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def folder(path: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(path, arcname=".")
    return buffer.getvalue()


class Rig:
    """Publishes jobs, answers rpcs, and records what provisioners and agents publish."""

    def __init__(self, bus: Bus, credential: Mapping[str, Any]) -> None:
        self.bus, self.credential = bus, dict(credential)
        self.seen: list[tuple[str, Event]] = []
        self.archives: dict[str, bytes] = {}
        self.superseded: set[str] = set()
        self.asked_for: list[Event] = []
        """The requests for agents' credentials, including refused ones."""
        self.refusals = 0
        """How many requests for credentials were refused."""
        self._heard: set[str] = set()
        self._changed = asyncio.Condition()
        self.chat, self.workspace, self.template = new_id(), new_id(), new_id()

    @classmethod
    @asynccontextmanager
    async def on(
        cls, bus: Bus, credential: Mapping[str, Any], gateway: Bus | None = None
    ) -> AsyncIterator[Rig]:
        """Listen on `bus`. Answer rpcs over `gateway` if they need a connection of their own."""
        rig = cls(bus, credential)
        for stream in (IN, JOB, LOG, PRESENCE):
            await bus.ensure_stream(stream)
        for consumer in (WORKER_IN, pool_consumer("local")):
            await bus.ensure_consumer(consumer)
        gateway = gateway or bus
        await gateway.respond("workspaced.rpc.template_archive", "q", rig._archive)
        await gateway.serve(
            "workspaced", "1.0.0", "", {"workspaced.rpc.agent_credential": rig._credential}
        )
        async with asyncio.TaskGroup() as tasks:
            listening = [asyncio.Event() for _ in range(3)]
            kinds = ("workspaced.in.>", "workspaced.log.>", "workspaced.presence.>")
            listeners = [
                tasks.create_task(rig._listen(subject, ready))
                for subject, ready in zip(kinds, listening, strict=True)
            ]
            for ready in listening:
                await ready.wait()
            listeners.append(tasks.create_task(rig._take()))
            try:
                yield rig
            finally:
                for listener in listeners:
                    listener.cancel()

    def version(self, files: Files | bytes) -> Event:
        """Return a template version with these files."""
        archive = files if isinstance(files, bytes) else packed(files)
        version_id = new_id()
        self.archives[version_id] = archive
        return {
            "version_id": version_id,
            "archive": {"sha256": hashlib.sha256(archive).hexdigest(), "size": len(archive)},
        }

    def job(
        self, number: int = 1, transition: str = "start", *, version: Event, **more: Any
    ) -> Event:
        spec = {"build": more.pop("build", {}), "agent": more.pop("agent", [])}
        return {
            "chat_id": self.chat,
            "workspace_id": self.workspace,
            "workspace_name": "tidy-owl",
            "build_id": new_id(),
            "build_number": number,
            "transition": transition,
            "owner_id": new_id(),
            "owner_name": "ann",
            "organization_id": new_id(),
            "template": {"id": self.template, "name": "sample", "spec": spec, **version},
            "parameters": {},
            "not_after": codec.timestamp(datetime.now(UTC) + timedelta(minutes=5)),
            **more,
        }

    async def ask(self, job: Event) -> str:
        """Publish the job; return the id of its build."""
        event = cloud_event(
            "build_requested", "/workspaced", job["chat_id"], job, traceparent=TRACE
        )
        await self.ask_raw(json.dumps(event).encode())
        return str(job["build_id"])

    async def ask_raw(self, body: bytes) -> None:
        await self.bus.publish("workspaced.job.local", body, message_id=new_id())

    def events(self, prefix: str) -> list[Event]:
        return [event for subject, event in self.seen if subject.startswith(prefix)]

    def facts(self, **wanted: object) -> list[Event]:
        """Return the facts with these values in their data or, for `type`, in the envelope."""
        return [
            event
            for event in self.events("workspaced.in.")
            if all(_value(event, key) == value for key, value in wanted.items())
        ]

    async def fact(self, **wanted: object) -> Event:
        """Wait for a fact with these values; return the first one."""
        await self.until(lambda: bool(self.facts(**wanted)), str(wanted))
        return self.facts(**wanted)[0]

    async def ended(self, build_id: str) -> Event:
        """Wait for the build's terminal fact; return it."""

        def terminal() -> list[Event]:
            return [f for f in self.facts(build_id=build_id) if _value(f, "type") in _TERMINAL]

        await self.until(lambda: bool(terminal()), f"the end of build {build_id}")
        return terminal()[0]

    async def until(self, happened: Callable[[], bool], words: str = "") -> None:
        """Wait until a recorded message makes `happened` true."""
        try:
            async with asyncio.timeout(PATIENCE), self._changed:
                await self._changed.wait_for(happened)
        except TimeoutError:
            heard = "\n".join(f"{subject} {event}" for subject, event in self.seen)
            raise AssertionError(f"never came: {words}; what came:\n{heard}") from None

    def output(self, build_id: str, origin: str = "provisioner") -> str:
        return "".join(
            line["data"]["output"]
            for line in self.events("workspaced.log.")
            if (line["data"]["build_id"], line["data"]["origin"]) == (build_id, origin)
        )

    async def _listen(self, subject: str, ready: asyncio.Event) -> None:
        async with self.bus.subscribe(subject) as messages:
            ready.set()
            async for message in messages:
                await self._add(message.subject, json.loads(message.data or b"{}"))

    async def _take(self) -> None:
        """Record messages of the stream that were published while this bus was disconnected."""
        async with self.bus.pull(WORKER_IN) as pull:
            while True:
                for delivery in await pull.next(100):
                    event = json.loads(delivery.data)
                    if event["id"] not in self._heard:
                        await self._add(delivery.subject, event)
                    await delivery.ack()

    async def _add(self, subject: str, event: Event) -> None:
        async with self._changed:
            self._heard.add(event.get("id", ""))
            self.seen.append((subject, event))
            self._changed.notify_all()

    async def _archive(self, message: Message) -> bytes:
        asked = json.loads(message.data)
        return self.archives[asked["version_id"]][asked["offset"] :][: 256 * 1024]

    async def _credential(self, message: Message) -> bytes:
        asked = json.loads(message.data)
        async with self._changed:
            self.asked_for.append(asked)
            self.refusals += asked["build_id"] in self.superseded
            self._changed.notify_all()
        if asked["build_id"] in self.superseded:
            raise ServiceError(403, "not the newest build")
        return json.dumps(self.credential).encode()


_TERMINAL = ("build_succeeded", "build_failed", "build_canceled")


def _value(event: Event, key: str) -> object:
    if key == "type":
        return event["type"].split(".")[1]
    return event["data"].get(key)
