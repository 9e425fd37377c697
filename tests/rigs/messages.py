"""The messages of chat services, provisioners and agents, as docs/contract.md describes them.

Nothing is imported from the product. Every test that publishes such a message builds it here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

CONTENT_TYPE = "application/cloudevents+json"
BUILD_KEYS = ("workspace_id", "build_id", "build_number", "transition")
"""The keys of a job that every fact about its build repeats."""

Event = dict[str, Any]


def new_id() -> str:
    return str(uuid4())


def new_trace() -> tuple[str, str]:
    """Return a new trace id and the traceparent header that carries it."""
    trace_id = uuid4().hex
    return trace_id, f"00-{trace_id}-{uuid4().hex[:16]}-01"


def cloud_event(
    type_name: str, source: str, chat: str, data: Mapping[str, Any], /, **more: Any
) -> Event:
    """Return a CloudEvent; `more` replaces attributes, and None removes one."""
    made = {
        "specversion": "1.0",
        "id": more["id"] if "id" in more else new_id(),  # a new one takes time
        "source": source,
        "type": f"workspaced.{type_name}.v1",
        "subject": chat,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "data": dict(data),
        **more,
    }
    return {key: value for key, value in made.items() if value is not None}


def subject_of(event: Event) -> str:
    """Return the subject on which the source of an event publishes it into WORKSPACED_IN."""
    role, sender = event["source"].split("/")[1:]
    return f"workspaced.in.{'tool' if role == 'chat' else role}.{event['subject']}.{sender}"


def headers_of(event: Event) -> dict[str, str]:
    """Return the headers with which a sender publishes an event."""
    return {
        "Content-Type": CONTENT_TYPE,
        "Nats-Msg-Id": f"{event.get('source')}:{event.get('id')}",
    }


def tool_request(service: str, chat: str, call: Mapping[str, Any], /, **more: Any) -> Event:
    """Return the request for a tool call; `call_data` makes its data."""
    return cloud_event("tool_requested", f"/chat/{service}", chat, call, **more)


def call_data(
    call_id: str,
    tool: str,
    args: Mapping[str, Any],
    *,
    organization_id: str,
    owner_id: str,
    owner_name: str = "ann",
) -> Event:
    """Return the data of a tool request."""
    return {
        "call_id": call_id,
        "tool": tool,
        "args": dict(args),
        "organization_id": organization_id,
        "owner_id": owner_id,
        "owner_name": owner_name,
    }


def build_fact(
    type_name: str, provisioner: str, build: Event, data: Mapping[str, Any], /, **more: Any
) -> Event:
    """Return a provisioner's fact about a build: a job, or a build that the test made up."""
    keys = {key: build[key] for key in BUILD_KEYS if key in build}
    chat = more.pop("subject", None) or build["chat_id"]
    return cloud_event(type_name, f"/provisioner/{provisioner}", chat, {**keys, **data}, **more)


def success_of(job: Event, *agents: Event) -> Event:
    """Return what `build_succeeded` says beside the keys of its build."""
    return {"template_version_id": job["template"]["version_id"], "agents": list(agents)}


def agent_entry(name: str = "main", **more: Any) -> Event:
    """Return a new agent as `build_succeeded` lists it."""
    return {"id": new_id(), "name": name, **more}


def agent_fact(
    type_name: str,
    build: Event,
    agent_id: str,
    sequence: int,
    data: Mapping[str, Any] | None = None,
    /,
    **more: Any,
) -> Event:
    """Return a fact of an agent of a build."""
    keys = {key: build[key] for key in ("workspace_id", "build_id")}
    keys |= {"agent_id": agent_id, "sequence": sequence, **(data or {})}
    return cloud_event(type_name, f"/agent/{agent_id}", build["chat_id"], keys, **more)


def ready_agent_facts(build: Event, agent_id: str) -> list[Event]:
    """Return the facts with which an agent reports that it is connected and ready."""
    return [
        agent_fact("agent_connected", build, agent_id, 1),
        agent_fact("agent_lifecycle", build, agent_id, 2, {"lifecycle": "ready"}),
    ]


def log_line(source: str, build: Event, number: int, output: str, **more: Any) -> tuple[str, Event]:
    """Return the subject and the event of a line in a build's log."""
    line = {
        "build_id": build["build_id"],
        "origin": "provisioner",
        "stage": "build",
        "level": "info",
        "output": output,
        "sequence": number,
        **more,
    }
    chat = build["chat_id"]
    subject = f"workspaced.log.{chat}.{build['build_id']}"
    return subject, cloud_event("log_appended", source, chat, line)
