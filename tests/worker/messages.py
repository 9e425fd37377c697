"""Chat services, provisioners and agents that publish over the product's bus, real or in memory."""

from __future__ import annotations

import json
from typing import Any, Final

from bus import CLOUDEVENT, Bus, Message, PubAck, Subscription, subjects
from tests.rigs.messages import (
    Event,
    agent_fact,
    build_fact,
    call_data,
    cloud_event,
    new_id,
    subject_of,
    success_of,
    tool_request,
)
from tests.unit.driver import ANN, ORG, PLAIN, PYTHON
from tests.unit.facts import uid

TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TEMPLATE: Final = PLAIN
Job = dict[str, Any]


class Senders:
    """Publishes the messages of all senders over one connection.

    Without `event_id` a message is a new event; with the id of an earlier event it is a repeat.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def publish(self, event: Event) -> PubAck:
        """Publish an event on the subject of its source."""
        return await self.bus.publish(
            subject_of(event), json.dumps(event).encode(), headers=CLOUDEVENT
        )

    async def send(self, kind: str, chat: str, sender: str, body: dict[str, Any] | bytes) -> PubAck:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        subject = subjects.inbound(kind, chat, sender)
        return await self.bus.publish(subject, data, headers=CLOUDEVENT)

    async def ask(
        self,
        chat: str,
        tool: str,
        call: str = "c",
        *,
        event_id: str | None = None,
        trace: str | None = None,
        owner: str = ANN,
        service: str = "service",
        **args: Any,
    ) -> PubAck:
        data = call_data(call, tool, args, organization_id=ORG, owner_id=owner)
        return await self.publish(tool_request(service, chat, data, **_same(event_id, trace)))

    async def create(self, chat: str, call: str = "c", **more: Any) -> PubAck:
        return await self.ask(
            chat, "create_workspace", call, **{"template_id": TEMPLATE_ID, **more}
        )

    async def cancel(self, chat: str, call: str) -> PubAck:
        data = {"call_id": call}
        return await self.publish(cloud_event("tool_canceled", "/chat/service", chat, data))

    async def delete(self, chat: str, *, workspace: str | None = None) -> PubAck:
        data = {"reason": "enough"} | ({} if workspace is None else {"workspace_id": workspace})
        return await self.publish(cloud_event("delete_requested", "/chat/service", chat, data))

    async def cancel_build(self, chat: str, build_id: str | None = None) -> PubAck:
        data = {} if build_id is None else {"build_id": build_id}
        return await self.publish(
            cloud_event("build_cancel_requested", "/chat/service", chat, data)
        )

    async def keep(self, chat: str, seconds: float) -> PubAck:
        data = {"seconds": seconds}
        return await self.publish(cloud_event("keep_requested", "/chat/service", chat, data))

    async def active(
        self, job: Job, sequence: int, *, agent: str = "main", event_id: str | None = None
    ) -> PubAck:
        """Report that somebody works in the workspace of a job."""
        same = _same(event_id, None)
        return await self.publish(
            agent_fact("agent_activity", job, agent_of(job, agent), sequence, {}, **same)
        )

    async def built(
        self,
        job: Job,
        how: str = "succeeded",
        *,
        event_id: str | None = None,
        trace: str | None = None,
        agents: tuple[str, ...] = ("main",),
        **more: Any,
    ) -> PubAck:
        """Report that the build of a job has `started`, `succeeded`, `failed` or was `canceled`."""
        data: Event = {"error": "disk full"} if how == "failed" else {}
        if how == "succeeded":
            listed = agents if job["transition"] == "start" else ()
            data = success_of(job, *({"id": agent_of(job, name), "name": name} for name in listed))
        same = _same(event_id, trace)
        return await self.publish(build_fact(f"build_{how}", "local", job, data | more, **same))

    async def deleted(self, job: Job) -> PubAck:
        """Report that the workspace of a job is deleted."""
        gone = {"chat_id": job["chat_id"], "workspace_id": job["workspace_id"]}
        gone |= {"build_id": None, "build_number": None}
        return await self.publish(build_fact("workspace_deleted", "local", gone, {}))

    async def agent(
        self, job: Job, how: str, sequence: int, *, agent: str = "main", event_id: str | None = None
    ) -> PubAck:
        """Report that an agent is `connected`, `disconnected`, or has reached a lifecycle."""
        known = how in ("connected", "disconnected")
        name, data = (f"agent_{how}", {}) if known else ("agent_lifecycle", {"lifecycle": how})
        same = _same(event_id, None)
        return await self.publish(
            agent_fact(name, job, agent_of(job, agent), sequence, data, **same)
        )

    async def show(self, job: Job, *, agent: str = "main", ttl: float | None = 20.0) -> PubAck:
        """Publish an agent's presence message."""
        subject = subjects.presence(job["chat_id"], agent_of(job, agent))
        return await self.bus.publish(subject, b"{}", ttl=ttl)


class Answers:
    """A subscription to answers without those that are delivered again, which may happen any time."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._seen: set[str] = set()

    async def next(self, timeout: float) -> Message:
        """Wait for the next answer with a new event id."""
        while True:
            found = await self._subscription.next(timeout)
            event_id = json.loads(found.data)["id"]
            if event_id not in self._seen:
                self._seen.add(event_id)
                return found


def _same(event_id: str | None, trace: str | None) -> dict[str, Any]:
    """Return the attributes of an event that a test determines."""
    return {"id": event_id or new_id(), "traceparent": trace}


def agent_of(job: Job, name: str = "main") -> str:
    """Return the agent's id, which is different for each build."""
    return uid(f"{job['build_id']}/{name}")


TEMPLATE_ID: Final = PYTHON.id
