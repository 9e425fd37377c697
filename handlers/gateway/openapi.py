"""The OpenAPI 3.1 document of the HTTP interface, made from the models of bodies and replies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Final, Protocol

from pydantic import BaseModel, TypeAdapter

from handlers.gateway import replies, requests
from handlers.inspection import messages as inspected
from statemachine import messages
from statemachine.states import STATE_INFO

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
_SEQUENCE: Final = {"type": "integer", "minimum": 1, "exclusiveMaximum": 10**18}
_WAIT: Final = {"anyOf": [{"type": "number", "minimum": 0}, {"enum": [None, ""]}]}
_TEXT: Final = {"type": "string"}
_WITHOUT_NUL: Final = "^[^\\u0000]*$"
_WHOLE: Final = {"type": "integer", "exclusiveMinimum": -(10**19), "exclusiveMaximum": 10**19}
_PAGE: Final = {"anyOf": [_WHOLE, {"enum": [""]}]}
_PLAIN: Final = {"type": "string", "pattern": _WITHOUT_NUL}
_JSON: Final = {
    "description": "Any JSON; no text contains NUL.",
    "anyOf": [
        {"type": ["null", "boolean", "number"]},
        _PLAIN,
        {"type": "array", "items": {"$ref": _REF.format(model="Json")}},
        {"$ref": _REF.format(model="JsonObject")},
    ],
}
_JSON_OBJECT: Final = {
    "type": "object",
    "propertyNames": {"pattern": _WITHOUT_NUL},
    "additionalProperties": {"$ref": _REF.format(model="Json")},
}

_BODIES: Final[Mapping[str, type[BaseModel]]] = {
    "call_tool": requests.ToolBody,
    "cancel_build": requests.CancelBuildBody,
    "keep": requests.KeepBody,
}
"""The body of a route: its model without the fields that the path has."""
_QUERIES: Final[Mapping[str, type[BaseModel]]] = {
    "list_chats": requests.ChatsBody,
    "get_chat": requests.ChatBody,
    "read_events": requests.EventsBody,
    "read_log": requests.LogBody,
    "list_calls": requests.CallsBody,
    "build_times": requests.BuildTimesBody,
    "list_dead": requests.DeadLettersBody,
}
"""The query of a route, in the same way."""
_MORE: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "call_tool": {"wait_seconds": _WAIT},
    "list_chats": {"state": {"enum": ["", *sorted({about.wire for about in STATE_INFO.values()})]}},
    "get_call": {"wait_seconds": _WAIT},
    "list_templates": {"organization_id": _UUID, "query": _PLAIN, "page": _PAGE},
    "read_template": {"organization_id": _UUID},
    "stream": {
        "chat": {"type": "array", "items": _UUID, "maxItems": 100},
        "presence": {"enum": ["", "true", "false"]},
    },
}
"""What a route takes besides or more exactly, in its body or, if it has none, in its query. All may be absent."""
_OF_THE_TOKEN: Final = frozenset(("organization_id", "owner_id", "owner_name"))
"""Fields that may be absent if the token has them."""
_REPLIES: Final[Mapping[str, Any]] = {
    "call_tool": messages.ToolResolved,
    "get_call": messages.ToolResolved,
    "cancel_call": replies.CanceledCall,
    "list_chats": replies.ChatsPage,
    "get_chat": replies.ChatWithCalls,
    "read_events": replies.EventsPage,
    "read_log": replies.LinesPage,
    "status": inspected.StatusReply,
    "list_calls": replies.CallsPage,
    "build_times": replies.BuildTimesReply,
    "list_dead": inspected.DeadLettersPage,
    "read_dead": inspected.ReadDeadLetter,
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
    schemas: dict[str, Any] = {
        "Problem": _PROBLEM,
        "Accepted": _ACCEPTED,
        "Json": _JSON,
        "JsonObject": _JSON_OBJECT,
    }
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
        "parameters": [*_path_parameters(route.path), *_query_parameters(route)],
        "responses": _responses(route, schemas),
    }
    if (body := _BODIES.get(route.answer)) is not None:
        properties = _properties(body, route, nothing=(None, ""))
        properties |= _MORE.get(route.answer, {})
        required = sorted(_required(body) & properties.keys())
        schema = {**_JSON_OBJECT, "properties": properties, "required": required}
        if not required:
            schema["type"] = ["object", "null"]
        operation["requestBody"] = {
            "content": {"application/json": {"schema": schema}},
            "required": bool(required),
        }
    return operation


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        schema = _SEQUENCE if name == "sequence" else _UUID if name in _IDS else _TOKEN
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(route: Described) -> Iterable[dict[str, Any]]:
    query = _QUERIES.get(route.answer)
    schemas = {} if query is None else _properties(query, route, nothing=("",))
    if route.answer not in _BODIES:
        schemas |= _MORE.get(route.answer, {})
    for name, schema in schemas.items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _properties(
    model: type[BaseModel], route: Described, *, nothing: Sequence[str | None]
) -> dict[str, Mapping[str, Any]]:
    """Return the schemas of a model's fields that are not in the path.

    `nothing`: the values that an optional field may have instead of its own.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for name, schema in model.model_json_schema()["properties"].items():
        if f"{{{name}}}" in route.path:
            continue
        options = [
            _without_nul(part)
            for part in schema.get("anyOf", [schema])
            if part.get("type") != "null"
        ]
        if name not in _required(model):
            options.append({"enum": list(nothing)})
        found[name] = {"anyOf": options}
    return found


def _without_nul(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if schema["type"] == "object":
        return {"$ref": _REF.format(model="JsonObject")}
    if schema["type"] == "string" and "pattern" not in schema:
        return {**schema, "pattern": _WITHOUT_NUL}
    return schema


def _required(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields that must be given, also by the holder of a token that has an owner."""
    fields = {name for name, field in model.model_fields.items() if field.is_required()}
    return frozenset(fields) - _OF_THE_TOKEN


def _responses(route: Described, schemas: dict[str, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[str, Any] = {"default": {"description": "A problem", "content": problem}}
    accepted = {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}}
    if route.answer in ("call_tool", "get_call", "delete_workspace"):
        found["202"] = {"description": "It is stored and goes on", "content": accepted}
    if route.answer == "stream":
        text = {"text/event-stream": {"schema": _TEXT}}
        found["200"] = {
            "description": "Server-Sent Events: state, log, exec, presence, end",
            "content": text,
        }
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
