"""The OpenAPI 3.1 document of the HTTP interface, made from the models of bodies and replies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, Final, Protocol

from pydantic import TypeAdapter

from handlers.gateway import replies
from statemachine import messages

PATH: Final = "/openapi.json"
_REF: Final = "#/components/schemas/{model}"
_IDS: Final = frozenset(("chat_id", "build_id", "template_id"))


class Described(Protocol):
    """A route, as the document describes it."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102


_UUID: Final = {
    "type": "string",
    "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
}
_TOKEN: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"}
_WAIT: Final = {"type": "number", "minimum": 0}
_TEXT: Final = {"type": "string"}
_INTEGER: Final = {"type": "integer", "minimum": 0}

_QUERIES: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "get_call": {"wait_seconds": _WAIT},
    "list_chats": {
        "organization_id": _UUID,
        "owner_id": _UUID,
        "state": _TEXT,
        "cursor": _UUID,
    },
    "read_events": {"after": _INTEGER},
    "read_log": {"after": _INTEGER},
    "list_templates": {"organization_id": _UUID, "query": _TEXT, "page": {"type": "integer"}},
    "read_template": {"organization_id": _UUID},
    "stream": {"chat": {"type": "array", "items": _UUID, "maxItems": 100}},
}
_BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "call_tool": {
        "call_id": _TOKEN,
        "organization_id": _UUID,
        "owner_id": _UUID,
        "owner_name": {"type": "string", "minLength": 1, "maxLength": 255},
        "args": {"type": "object"},
        "wait_seconds": _WAIT,
    },
    "cancel_build": {"build_id": _UUID, "reason": _TEXT},
    "keep": {"seconds": {"type": "number", "exclusiveMinimum": 0}},
}
_REQUIRED: Final[Mapping[str, list[str]]] = {"keep": ["seconds"]}
_REPLIES: Final[Mapping[str, Any]] = {
    "call_tool": messages.ToolResolved,
    "get_call": messages.ToolResolved,
    "cancel_call": replies.CanceledCall,
    "list_chats": replies.ChatsPage,
    "get_chat": replies.ChatWithCalls,
    "read_events": replies.EventsPage,
    "read_log": replies.LinesPage,
    "list_templates": messages.TemplatesPage,
    "read_template": messages.TemplateRead,
}
_ACCEPTED: Final = {
    "type": "object",
    "required": ["state"],
    "properties": {
        "call_id": _TOKEN,
        "state": _TEXT,
        "deadline": {"type": ["string", "null"], "format": "date-time"},
    },
}
_PROBLEM: Final = {
    "type": "object",
    "required": ["status", "title", "detail"],
    "properties": {"status": {"type": "integer"}, "title": _TEXT, "detail": _TEXT},
}


@cache
def document(routes: tuple[Described, ...]) -> dict[str, Any]:
    """Return the document that describes these routes."""
    schemas: dict[str, Any] = {"Problem": _PROBLEM, "Accepted": _ACCEPTED}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "workspaced",
            "version": version("workspaced"),
            "description": "Development workspaces for AI chats.",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Described, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.answer,
        "summary": route.summary,
        "parameters": [*_path_parameters(route.path), *_query_parameters(route.answer)],
        "responses": _responses(route, schemas),
    }
    if route.answer in _BODIES:
        schema = {"type": "object", "properties": _BODIES[route.answer]}
        if required := _REQUIRED.get(route.answer):
            schema["required"] = required
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        schema = _UUID if name in _IDS else _TOKEN
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(answer: str) -> Iterable[dict[str, Any]]:
    for name, schema in _QUERIES.get(answer, {}).items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _responses(route: Described, schemas: dict[str, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[str, Any] = {"default": {"description": "A problem", "content": problem}}
    accepted = {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}}
    if route.answer in ("call_tool", "get_call", "delete_workspace"):
        found["202"] = {"description": "It is stored and goes on", "content": accepted}
    if route.answer == "stream":
        text = {"text/event-stream": {"schema": _TEXT}}
        found["200"] = {"description": "Server-Sent Events: state, log, exec, end", "content": text}
    elif route.answer != "delete_workspace":
        schema = _reply_schema(_REPLIES.get(route.answer), schemas)
        found["200"] = {
            "description": "The answer",
            "content": {"application/json": {"schema": schema}},
        }
    return found


def _reply_schema(reply: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a reply, and add the schemas that it refers to."""
    if reply is None:
        return {"type": "object"}
    schema = TypeAdapter(reply).json_schema(ref_template=_REF, mode="serialization")
    schemas |= schema.pop("$defs", {})
    schemas[reply.__name__] = schema
    return {"$ref": _REF.format(model=reply.__name__)}
