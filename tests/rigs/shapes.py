"""The shape of each message, written from the contract without the product."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from tests import schemas

Event = dict[str, Any]

UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
STATES = {
    "none",
    "building",
    "agent_connecting",
    "scripts_running",
    "ready",
    "failed",
    "stopping",
    "stopped",
}
LIMITED = {"building", "agent_connecting", "scripts_running", "stopping"}
REASONS = {
    "build_failed",
    "build_canceled",
    "build_timeout",
    "selection_error",
    "agent_not_ready",
    "startup_scripts_failed",
    "startup_scripts_timeout",
}
STATUSES = {"connecting", "connected", "disconnected", "timeout"}
LIFECYCLES = {
    "created",
    "starting",
    "start_timeout",
    "start_error",
    "ready",
    "shutting_down",
    "shutdown_timeout",
    "shutdown_error",
    "off",
}
OUTCOMES = {"moved", "changed", "kept", "repeat", "stale", "foreign", "ignored"}


def is_uuid(text: object) -> bool:
    return isinstance(text, str) and UUID_TEXT.fullmatch(text) is not None


def is_time(text: object) -> bool:
    return (
        isinstance(text, str)
        and TIME.fullmatch(text) is not None
        and datetime.fromisoformat(text).tzinfo is not None
    )


def envelope(event: Event, type_name: str, chat: str, headers: Mapping[str, str] | None) -> None:
    """An event that workspaced publishes."""
    schemas.check_event(event)
    assert event["specversion"] == "1.0"
    assert UUID(event["id"])
    assert event["source"] == "/workspaced"
    assert event["type"] == f"workspaced.{type_name}.v1"
    assert event["subject"] == chat
    assert is_time(event["time"])
    assert isinstance(event["data"], dict)
    assert event.keys() - {"datacontenttype", "traceparent"} == {
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "data",
    }
    assert headers is not None
    assert headers["Content-Type"] == "application/cloudevents+json"


def state_changed(data: Event, chat: str) -> None:
    """Data of `state_changed`, also as `get_chat` and `list_chats` give it."""
    assert data.keys() == {
        "chat_id",
        "version",
        "state",
        "previous_state",
        "workspace",
        "build",
        "agent",
        "failure",
        "deadline",
        "cause",
        "stops_at",
    }
    assert data["chat_id"] == chat
    assert isinstance(data["version"], int)
    state = data["state"]
    assert state in STATES
    assert data["previous_state"] in STATES
    assert state == "none" or data["workspace"] is not None
    if (workspace := data["workspace"]) is not None:
        assert workspace.keys() == {"id", "name", "owner_name", "template_id"}
        assert is_uuid(workspace["id"])
        assert isinstance(workspace["name"], str)
        # A build made elsewhere need not tell the owner, nor the template.
        assert workspace["owner_name"] is None or isinstance(workspace["owner_name"], str)
        assert workspace["template_id"] is None or is_uuid(workspace["template_id"])
    assert state == "none" or data["build"] is not None
    if (build := data["build"]) is not None:
        times = ("begun_at", "cancel_requested_at")
        assert build.keys() == {"id", "number", "transition", "started_at", "pool", *times}
        assert all(build[key] is None or is_time(build[key]) for key in times)
        assert is_uuid(build["id"])
        assert isinstance(build["number"], int)
        assert build["transition"] in {"start", "stop", "delete"}
        assert is_time(build["started_at"])
    if (agent := data["agent"]) is not None:
        assert agent.keys() == {"id", "name", "status", "lifecycle", "reason"}
        assert is_uuid(agent["id"])
        assert agent["status"] in STATUSES
        assert agent["lifecycle"] in LIFECYCLES | {None}
    assert (data["failure"] is not None) == (state == "failed")
    if (failure := data["failure"]) is not None:
        assert failure.keys() - {"error_code"} == {"reason", "message"}
        assert failure["reason"] in REASONS
        assert isinstance(failure["message"], str)
        assert failure["message"]
        assert isinstance(failure.get("error_code", ""), str)
    assert (data["deadline"] is not None) == (state in LIMITED)
    assert data["deadline"] is None or is_time(data["deadline"])
    assert data["stops_at"] is None or is_time(data["stops_at"])
    if data["version"] > 0:
        assert data["cause"].keys() == {"source", "id", "type"}


def tool_resolved(data: Event) -> None:
    """Data of `tool_resolved`, also as an rpc replies."""
    assert data.keys() - {"conflict", "ignored"} == {"call_id", "tool", "is_error", "result"}
    assert data.get("conflict", True) is True
    assert data.get("ignored", ["?"]), "the key is missing when there is nothing to say"
    assert TOKEN.fullmatch(data["call_id"])
    assert isinstance(data["tool"], str)
    assert isinstance(data["is_error"], bool)
    assert isinstance(data["result"], dict)
    result = data["result"]
    if about_a_workspace := bool(result.keys() & {"workspace_name", "build_id"}):
        assert is_uuid(result["workspace_id"])
    assert about_a_workspace == ("workspace_id" in result)
    if data["is_error"]:
        assert data["result"].keys() == {"error"}
        assert isinstance(data["result"]["error"], str)
        assert data["result"]["error"]


def build_requested(data: Event, chat: str) -> None:
    """Data of a job."""
    required = {
        "chat_id",
        "workspace_id",
        "workspace_name",
        "build_id",
        "build_number",
        "transition",
        "owner_id",
        "owner_name",
        "organization_id",
        "template",
        "parameters",
        "not_after",
        "activity_seconds",
    }
    assert required <= data.keys() <= required | {"preset_id", "ttl_ms"}
    assert data["chat_id"] == chat
    for key in ("workspace_id", "build_id", "owner_id", "organization_id"):
        assert is_uuid(data[key]), key
    assert data["transition"] in {"start", "stop", "delete"}
    assert isinstance(data["build_number"], int)
    template = data["template"]
    assert template.keys() == {"id", "name", "version_id", "spec", "archive"}
    assert is_uuid(template["id"])
    assert is_uuid(template["version_id"])
    assert template["spec"].keys() == {"build", "agent"}
    assert template["archive"].keys() == {"sha256", "size"}
    assert re.fullmatch(r"[0-9a-f]{64}", template["archive"]["sha256"])
    assert isinstance(template["archive"]["size"], int)
    assert all(isinstance(value, str) for value in data["parameters"].values())
    assert is_time(data["not_after"])
    assert "preset_id" not in data or is_uuid(data["preset_id"])
    assert "ttl_ms" not in data or isinstance(data["ttl_ms"], int)
    assert isinstance(data["activity_seconds"], int)


def log_entry(entry: Event) -> None:
    """An entry of `read_events`."""
    assert {"seq", "event", "outcome", "state_before", "state_after", "version"} <= entry.keys()
    assert isinstance(entry["seq"], int)
    assert entry["outcome"] in OUTCOMES
    assert entry["state_before"] in STATES
    assert entry["state_after"] in STATES
    assert entry["version"] is None or isinstance(entry["version"], int)
    assert entry["event"]["specversion"] == "1.0"
    json.dumps(entry)
