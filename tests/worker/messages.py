"""Short functions that publish messages as chat services, provisioners and agents do."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import uuid4

from bus import CLOUDEVENT, Bus, PubAck, subjects
from tests.unit.driver import ANN, ORG, PLAIN
from tests.unit.facts import uid

TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TEMPLATE: Final = PLAIN
Job = dict[str, Any]


def new_id() -> str:
    return str(uuid4())


def envelope(
    name: str,
    source: str,
    chat: str,
    data: dict[str, Any],
    *,
    event_id: str | None = None,
    trace: str | None = None,
) -> dict[str, Any]:
    found = {
        "specversion": "1.0",
        "id": event_id or new_id(),
        "source": source,
        "type": f"workspaced.{name}.v1",
        "subject": chat,
        "data": data,
    }
    return found if trace is None else {**found, "traceparent": trace}


class Senders:
    """Publishes the messages of all senders over one connection.

    Without `event_id` a message is a new event; with the id of an earlier event it is a repeat.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

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
        data = {
            "call_id": call,
            "tool": tool,
            "args": args,
            "organization_id": ORG,
            "owner_id": owner,
            "owner_name": "ann",
        }
        body = envelope(
            "tool_requested", f"/chat/{service}", chat, data, event_id=event_id, trace=trace
        )
        return await self.send("tool", chat, service, body)

    async def create(self, chat: str, call: str = "c", **more: Any) -> PubAck:
        return await self.ask(chat, "create_workspace", call, template_id=TEMPLATE_ID, **more)

    async def cancel(self, chat: str, call: str) -> PubAck:
        body = envelope("tool_canceled", "/chat/service", chat, {"call_id": call})
        return await self.send("tool", chat, "service", body)

    async def delete(self, chat: str) -> PubAck:
        body = envelope("delete_requested", "/chat/service", chat, {"reason": "enough"})
        return await self.send("tool", chat, "service", body)

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
        data = {key: job[key] for key in ("workspace_id", "build_id", "build_number", "transition")}
        if how == "succeeded":
            listed = agents if job["transition"] == "start" else ()
            data |= {
                "template_version_id": job["template"]["version_id"],
                "agents": [{"id": agent_of(job, name), "name": name} for name in listed],
            }
        elif how == "failed":
            data |= {"error": "disk full"}
        body = envelope(
            f"build_{how}",
            "/provisioner/local",
            job["chat_id"],
            data | more,
            event_id=event_id,
            trace=trace,
        )
        return await self.send("provisioner", job["chat_id"], "local", body)

    async def deleted(self, job: Job) -> PubAck:
        """Report that the workspace of a job is deleted."""
        body = envelope(
            "workspace_deleted",
            "/provisioner/local",
            job["chat_id"],
            {"workspace_id": job["workspace_id"], "build_id": None, "build_number": None},
        )
        return await self.send("provisioner", job["chat_id"], "local", body)

    async def agent(
        self, job: Job, how: str, sequence: int, *, agent: str = "main", event_id: str | None = None
    ) -> PubAck:
        """Report that an agent is `connected`, `disconnected`, or has reached a lifecycle."""
        known = how in ("connected", "disconnected")
        data = {
            "workspace_id": job["workspace_id"],
            "build_id": job["build_id"],
            "agent_id": agent_of(job, agent),
            "sequence": sequence,
        }
        name = f"agent_{how}" if known else "agent_lifecycle"
        data |= {} if known else {"lifecycle": how}
        me = agent_of(job, agent)
        body = envelope(name, f"/agent/{me}", job["chat_id"], data, event_id=event_id)
        return await self.send("agent", job["chat_id"], me, body)

    async def show(self, job: Job, *, agent: str = "main", ttl: float | None = 20.0) -> PubAck:
        """Publish an agent's presence message."""
        subject = subjects.presence(job["chat_id"], agent_of(job, agent))
        return await self.bus.publish(subject, b"{}", ttl=ttl)


def agent_of(job: Job, name: str = "main") -> str:
    """Return the agent's id, which is different for each build."""
    return uid(f"{job['build_id']}/{name}")


TEMPLATE_ID: Final = uid("template python")
