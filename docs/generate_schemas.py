"""JSON Schemas and an AsyncAPI document of the wire contract, generated from the types of the code.

`make schemas` writes them into docs/schemas. The docstring of a class or an attribute becomes its
description. A new message, rpc or tool needs an entry in one of the tables below.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, Final, Literal, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from workspaced.tools import Format, in_format

from bus import subjects
from docs.tool_descriptions import DESCRIPTIONS
from handlers.gateway import replies, requests
from handlers.inspection import messages as inspected
from statemachine import arguments, events, exec_tools, messages
from statemachine.exec_tools import EXEC_RESULTS, EXEC_TOOLS
from statemachine.strict_json import RejectReason

Json = dict[str, Any]

TOOLS: Final[Mapping[str, tuple[type, Any]]] = {
    "create_workspace": (arguments.CreateArguments, messages.CreateResult),
    "start_workspace": (arguments.StartArguments, messages.StartResult),
    "stop_workspace": (arguments.NoArguments, messages.StopResult),
    "list_templates": (arguments.ListArguments, messages.TemplatesPage),
    "read_template": (arguments.ReadArguments, messages.TemplateRead),
}
"""The arguments of each tool, and its result unless the call was wrong."""

RPCS: Final[Mapping[str, tuple[type, Any]]] = {
    "cancel": (requests.CancelBody, replies.CanceledCall),
    "keep": (requests.KeepBody, replies.KeptWorkspace),
    "cancel_build": (requests.CancelBuildBody, replies.CanceledBuild),
    "get_chat": (requests.ChatBody, replies.ChatWithCalls),
    "list_chats": (requests.ChatsBody, replies.ChatsPage),
    "list_orphans": (requests.OrphansBody, replies.OrphansPage),
    "read_log": (requests.LogBody, replies.LinesPage),
    "read_events": (requests.EventsBody, replies.EventsPage),
    "status": (requests.StatusBody, inspected.StatusReply),
    "list_calls": (requests.CallsBody, replies.CallsPage),
    "build_times": (requests.BuildTimesBody, replies.BuildTimesReply),
    "list_dead": (requests.DeadLettersBody, inspected.DeadLettersPage),
    "read_dead": (requests.DeadLetterBody, inspected.ReadDeadLetter),
    "template_archive": (requests.ArchiveBody, None),
    "agent_credential": (requests.AgentCredentialBody, replies.Key),
    "frontend_credential": (requests.FrontendCredentialBody, replies.FrontendKey),
    "issue_credential": (requests.IssueBody, replies.IssuedKey),
    "list_credentials": (requests.CredentialsBody, replies.KeysPage),
    "revoke_credential": (requests.RevokeBody, replies.RevokedKey),
    "issue_token": (requests.IssueTokenBody, replies.IssuedToken),
    "issue_page_code": (requests.IssuePageCodeBody, replies.PageCode),
    "list_tokens": (requests.TokensBody, replies.TokensPage),
    "revoke_token": (requests.RevokeTokenBody, replies.RevokedToken),
    "check_token": (requests.CheckTokenBody, replies.ShownToken),
    **dict.fromkeys(EXEC_TOOLS, (requests.ExecBody, replies.ExecResolved)),
}
"""The body and the reply of each rpc that asks no worker; None: the reply is not JSON."""

OUTGOING: Final[Mapping[str, Any]] = {
    "build_requested": messages.BuildJob,
    "build_cancel": messages.BuildCancel,
    "state_changed": messages.StateChanged,
    "tool_resolved": messages.ToolResolved,
}
"""The data of each event that workers publish."""

OF_COMMANDS: Final[Mapping[str, Any]] = {
    "exec_started": exec_tools.ExecStarted,
    "exec_output": exec_tools.ExecOutput,
    "exec_exited": exec_tools.ExecExited,
}
"""The data of each event that agents publish about commands."""

REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "AgentDisconnected": ("sequence",),
    "BuildFailed": ("error",),
    "BuildSucceeded": ("template_version_id", "agents"),
    "CreateArguments": ("template_id",),
    "ReadArguments": ("template_id",),
    "ToolBody": ("args",),
    "ToolRequested": ("args",),
}
"""Keys that readers tolerate to be absent, but that senders must send."""

SOURCES: Final[Mapping[str, str]] = {
    "tool": r"^/chat/[A-Za-z0-9_-]{1,128}$",
    "provisioner": r"^/provisioner/[A-Za-z0-9_-]{1,128}$",
    "agent": r"^/agent/[0-9a-f-]{36}$",
    "log": r"^/(provisioner|agent)/[A-Za-z0-9_-]{1,128}$",
    "own": r"^/workspaced$",
}
"""The pattern of an event's `source`, by the kind of its sender."""


def _name(model: type[events.Frozen]) -> str:
    return str(model.name)  # type: ignore[attr-defined]


def _names(kind: Literal["tool", "provisioner", "agent"]) -> tuple[str, ...]:
    return tuple(_name(model) for model in events.BY_KIND[kind])


@dataclass(frozen=True, slots=True)
class Channel:
    """A subject as the AsyncAPI document describes it."""

    name: str
    address: str
    action: Literal["send", "receive"]
    """Whether workspaced publishes to the subject or subscribes to it."""
    summary: str
    stream: str | None
    messages: tuple[str, ...]


CHANNELS: Final = (
    Channel(
        "requests",
        subjects.inbound("tool", "{chat_id}", "{service}"),
        "receive",
        "Requests of chat services",
        "WORKSPACED_IN",
        _names("tool"),
    ),
    Channel(
        "provisioner_facts",
        subjects.inbound("provisioner", "{chat_id}", "{provisioner}"),
        "receive",
        "Facts of provisioners",
        "WORKSPACED_IN",
        _names("provisioner"),
    ),
    Channel(
        "agent_facts",
        subjects.inbound("agent", "{chat_id}", "{agent_id}"),
        "receive",
        "Facts of agents",
        "WORKSPACED_IN",
        _names("agent"),
    ),
    Channel(
        "jobs",
        subjects.job("{pool}"),
        "send",
        "Builds for the provisioners of a pool, which pull them from the durable consumer `pool-<pool>`",
        "WORKSPACED_JOB",
        ("build_requested",),
    ),
    Channel(
        "canceled_builds",
        subjects.cancel("{pool}"),
        "send",
        "Builds that the provisioners of a pool must end",
        None,
        ("build_cancel",),
    ),
    Channel(
        "states",
        subjects.state("{chat_id}"),
        "send",
        "The newest state of each chat, for direct gets",
        "WORKSPACED_STATE",
        ("state_changed",),
    ),
    Channel(
        "ui_states",
        subjects.ui_state("{chat_id}"),
        "send",
        "The states of a chat, for frontends: the NATS server republishes what `WORKSPACED_STATE` stored",
        None,
        ("state_changed",),
    ),
    Channel(
        "logs",
        subjects.log("{chat_id}", "{build_id}"),
        "receive",
        "Output of builds and agents",
        "WORKSPACED_LOG",
        ("log_appended",),
    ),
    Channel(
        "ui_logs",
        subjects.ui_log("{chat_id}", "{build_id}"),
        "send",
        "Output for frontends: the NATS server republishes what `WORKSPACED_LOG` stored",
        None,
        ("log_appended",),
    ),
    Channel(
        "commands",
        subjects.exec_output("{chat_id}", "{agent_id}", "{exec_id}"),
        "receive",
        "What commands in workspaces do",
        "WORKSPACED_EXEC",
        tuple(OF_COMMANDS),
    ),
    Channel(
        "ui_commands",
        subjects.ui_exec("{chat_id}", "{agent_id}", "{exec_id}"),
        "send",
        "Commands for frontends: the NATS server republishes what `WORKSPACED_EXEC` stored",
        None,
        tuple(OF_COMMANDS),
    ),
    Channel(
        "results",
        subjects.result("{chat_id}", "{call_id}"),
        "send",
        "Answers of tool calls",
        "WORKSPACED_RESULT",
        ("tool_resolved",),
    ),
    Channel(
        "dead_letters",
        subjects.dead("{kind}"),
        "send",
        "Messages that workspaced could not accept",
        "WORKSPACED_DEAD",
        ("dead_letter",),
    ),
    Channel(
        "resend_provisioner",
        subjects.RESEND_PROVISIONER,
        "send",
        "Asks every provisioner to publish the facts again that it keeps",
        None,
        ("resend",),
    ),
    Channel(
        "resend_agent",
        subjects.RESEND_AGENT,
        "send",
        "Asks every agent to publish the facts again that it keeps",
        None,
        ("resend",),
    ),
)

PARAMETERS: Final[Mapping[str, str]] = {
    "chat_id": "The id of the chat",
    "service": "The name of the chat service",
    "provisioner": "The name of the provisioner",
    "agent_id": "The id of the agent",
    "pool": "The provisioners that take the job",
    "build_id": "The id of the build",
    "call_id": "The id of the call",
    "exec_id": "The id of the process",
    "kind": "`tool`, `provisioner` or `agent`: the third token of the message's subject",
}
"""Descriptions of the variable tokens of subjects."""


class _Generator(GenerateJsonSchema):
    """Generates schemas whose descriptions are the docstrings of classes and attributes."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Omit titles of keys, which would only repeat the keys."""
        del schema
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of a pydantic model."""
        return _described(super().model_schema(schema), schema["cls"])

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        """Return the schema of a TypedDict."""
        return _described(super().typed_dict_schema(schema), schema.get("cls"))


def _described(schema: JsonSchemaValue, cls: type | None) -> JsonSchemaValue:
    for key, text in _texts(cls).items():
        if key in schema.get("properties", {}):
            schema["properties"][key].setdefault("description", text)
    if "description" in schema:
        schema["description"] = _line(schema["description"])
    return schema


def _texts(cls: Any) -> dict[str, str]:
    """Return the docstrings of the attributes of a class and of its bases, by name."""
    bases = cls.__dict__.get("__orig_bases__", ()) or cls.__bases__ if cls is not None else ()
    texts: dict[str, str] = {}
    for base in bases:
        if getattr(base, "__module__", "").startswith(("statemachine.", "handlers.")):
            texts |= _texts(base)
    if cls is None:
        return texts
    (tree,) = ast.parse(dedent(inspect.getsource(cls))).body
    for key, text in pairwise(tree.body if isinstance(tree, ast.ClassDef) else ()):
        match key, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                texts[name] = _line(words)
    return texts


def _line(text: str) -> str:
    """Return a docstring as one line."""
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Schemas:
    """All schemas by name; they refer to each other as `#/$defs/<name>`."""

    definitions: Json
    events: Mapping[str, str]
    """The schema of each whole event, by the event's name."""
    bodies: Mapping[str, str]
    """The schema of each rpc's body."""
    replies: Mapping[str, str]
    """The schema of each rpc's reply, if that is JSON."""
    arguments: Mapping[str, str]
    """The schema of each tool's arguments."""
    results: Mapping[str, str]
    """The schema of each tool's result, unless the call was wrong."""

    def document(self, name: str) -> Json:
        """Return a JSON Schema that includes every definition it refers to."""
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        schema |= self.definitions[name]
        needed = sorted(self._needed(name) - {name})
        return schema | ({"$defs": {n: self.definitions[n] for n in needed}} if needed else {})

    def _needed(self, name: str, known: frozenset[str] = frozenset()) -> set[str]:
        found = {name}
        for ref in _references(self.definitions[name]):
            if ref not in known | found:
                found |= self._needed(ref, known | found)
        return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(ref := schema.get("$ref"), str):
            yield ref.removeprefix("#/$defs/")
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def schemas() -> Schemas:
    """Generate the schemas of all messages, rpc bodies and replies, tool arguments and results."""
    incoming = {
        _name(model): (kind, model) for kind in events.BY_KIND for model in events.BY_KIND[kind]
    }
    roots: dict[str, Any] = {
        "CloudEvent": messages.CloudEvent,
        "ToolBody": requests.ToolBody,
        "ToolError": messages.ToolError,
        "ToolResolved": messages.ToolResolved,
        "LogAppended": messages.LogAppended,
    }
    roots |= {model.__name__: model for _, model in incoming.values()}
    roots |= {data.__name__: data for data in {**OUTGOING, **OF_COMMANDS}.values()}
    roots |= {args.__name__: args for args in EXEC_TOOLS.values()}
    roots |= {result.__name__: result for result in EXEC_RESULTS.values()}
    for tool, (args, result) in TOOLS.items():
        roots |= {args.__name__: args, f"{_pascal(tool)}Result": result}
    for body, reply in RPCS.values():
        roots |= {body.__name__: body} | ({reply.__name__: reply} if reply else {})
    made, shared = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(root)) for name, root in roots.items()],
        schema_generator=_Generator,
    )
    definitions: Json = dict(shared["$defs"])
    for (name, _), schema in made.items():
        definitions.setdefault(name, schema)
    for name, keys in REQUIRED.items():
        for key in keys:
            _require(definitions[name], key)
    for tool in TOOLS:
        result = definitions[f"{_pascal(tool)}Result"]
        result.setdefault("description", f"The result of {tool}, unless the call was wrong.")
        definitions[f"{_pascal(tool)}Result"] = {"title": f"{_pascal(tool)}Result"} | result

    tool_replies = {}
    for tool in TOOLS:
        reply = f"{_pascal(tool)}Resolved"
        result = _ref(f"{_pascal(tool)}Result")
        definitions[reply] = _resolved(definitions, result, tool=tool)
        tool_replies[tool] = reply
    definitions["CallRefused"] = _resolved(definitions, _ref("ToolError"))
    answers = [*tool_replies.values(), "CallRefused"]
    definitions["ToolResolved"] = {
        "title": "ToolResolved",
        "description": definitions["ToolResolved"]["description"],
        "anyOf": [_ref(answer) for answer in answers],
    }
    for tool, resolved in tool_replies.items():
        definitions[f"{_pascal(tool)}Reply"] = {
            "title": f"{_pascal(tool)}Reply",
            "description": f"The reply of the rpc `{tool}`.",
            "anyOf": [_ref(resolved), _ref("CallRefused")],
        }

    data = {name: (str(kind), model.__name__) for name, (kind, model) in incoming.items()}
    data |= {name: ("own", model.__name__) for name, model in OUTGOING.items()}
    data |= {name: ("agent", model.__name__) for name, model in OF_COMMANDS.items()}
    data["log_appended"] = ("log", "LogAppended")
    for name, (kind, model) in data.items():
        definitions[f"{_pascal(name)}Event"] = _event(definitions, name, model, SOURCES[kind])
    return Schemas(
        definitions=definitions,
        events={name: f"{_pascal(name)}Event" for name in data},
        bodies=dict.fromkeys(TOOLS, "ToolBody")
        | {name: body.__name__ for name, (body, _) in RPCS.items()},
        replies={tool: f"{_pascal(tool)}Reply" for tool in TOOLS}
        | {name: reply.__name__ for name, (_, reply) in RPCS.items() if reply},
        arguments={tool: args.__name__ for tool, (args, _) in TOOLS.items()}
        | {tool: args.__name__ for tool, args in EXEC_TOOLS.items()},
        results={tool: f"{_pascal(tool)}Result" for tool in TOOLS}
        | {tool: result.__name__ for tool, result in EXEC_RESULTS.items()},
    )


def _require(definition: Json, key: str) -> None:
    """Make a key required and not nullable in a definition."""
    definition.setdefault("required", []).append(key)
    schema: Json = definition["properties"][key]
    schema.pop("default", None)
    if "anyOf" in schema:
        (kind,) = (kind for kind in schema.pop("anyOf") if kind != {"type": "null"})
        schema |= kind


def _event(definitions: Json, name: str, data: str, source: str) -> Json:
    """Return the schema of an event: the envelope and its data."""
    envelope: Json = definitions["CloudEvent"]
    properties = envelope["properties"] | {
        "type": {"const": f"workspaced.{name}.v1"},
        "source": envelope["properties"]["source"] | {"pattern": source},
        "data": _ref(data),
    }
    return envelope | {
        "title": f"workspaced.{name}.v1",
        "description": definitions[data]["description"],
        "properties": properties,
    }


def _resolved(definitions: Json, result: Json, tool: str | None = None) -> Json:
    """Return the schema of the answers of one tool or, without a tool, of refused calls."""
    answer: Json = definitions["ToolResolved"]
    called = answer["properties"]["tool"] if tool is None else {"const": tool}
    return answer | {
        "title": "CallRefused" if tool is None else f"{_pascal(tool)}Resolved",
        "description": "The call was wrong."
        if tool is None
        else f"The answer of a call of {tool}.",
        "properties": answer["properties"]
        | {"tool": called, "is_error": {"const": tool is None}, "result": result},
    }


def asyncapi(schemas: Schemas) -> Json:
    """Return the AsyncAPI document."""
    channels: Json = {}
    operations: Json = {}
    for channel in CHANNELS:
        channels[channel.name] = _channel(channel)
        operations[f"{channel.action}_{channel.name}"] = {
            "action": channel.action,
            "channel": {"$ref": f"#/channels/{channel.name}"},
            "summary": channel.summary,
        }
    answers: Json = {"service_error": {"$ref": "#/components/messages/service_error"}}
    bodies_and_replies: Json = {}
    for name in schemas.bodies:
        body, reply = f"{name}_body", f"{name}_reply"
        answers[reply] = {"$ref": f"#/components/messages/{reply}"}
        bodies_and_replies[body] = _plain(schemas, body, schemas.bodies[name])
        bodies_and_replies[reply] = _plain(schemas, reply, schemas.replies.get(name))
        channels[f"rpc_{name}"] = {
            "address": subjects.rpc(name),
            "messages": {body: {"$ref": f"#/components/messages/{body}"}},
        }
        operations[f"rpc_{name}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/rpc_{name}"},
            "summary": f"The rpc `{name}` of the NATS micro service `workspaced`",
            "reply": {
                "address": {
                    "location": "$message.header#/reply-to",
                    "description": "The reply subject, which the NATS client sets",
                },
                "channel": {"$ref": "#/channels/replies"},
                "messages": [
                    {"$ref": f"#/channels/replies/messages/{reply}"},
                    {"$ref": "#/channels/replies/messages/service_error"},
                ],
            },
        }
    channels["replies"] = {
        "address": None,
        "description": "The reply subject of the request",
        "messages": answers,
    }
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "workspaced",
            "version": "1",
            "description": "Development workspaces for AI chats, on NATS. docs/contract.md says what the "
            "messages mean and how their senders and readers behave.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {
                **{name: _message(schemas, name) for name in schemas.events},
                **_OTHERS,
                **bodies_and_replies,
            },
            "schemas": schemas.definitions,
        },
    }
    placed = json.dumps(document).replace('"#/$defs/', '"#/components/schemas/')
    return json.loads(placed)  # type: ignore[no-any-return]


def _channel(channel: Channel) -> Json:
    tokens = re.findall(r"\{(\w+)\}", channel.address)
    return {
        "address": channel.address,
        "summary": channel.summary,
        **({} if channel.stream is None else {"description": f"Stream `{channel.stream}`"}),
        **(
            {"parameters": {token: {"description": PARAMETERS[token]} for token in tokens}}
            if tokens
            else {}
        ),
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
    }


def _message(schemas: Schemas, name: str) -> Json:
    schema = schemas.events[name]
    return {
        "name": f"workspaced.{name}.v1",
        "summary": schemas.definitions[schema]["description"],
        "contentType": "application/cloudevents+json",
        "payload": _ref(schema),
    }


def _plain(schemas: Schemas, name: str, schema: str | None) -> Json:
    if schema is None:
        payload = {"type": "string", "format": "binary"}
        return {"name": name, "contentType": "application/octet-stream", "payload": payload}
    summary = schemas.definitions[schema].get("description", "")
    return {"name": name, "summary": summary, "payload": _ref(schema)}


_OTHERS: Final[Json] = {
    "dead_letter": {
        "name": "dead_letter",
        "summary": "A message that workspaced could not accept, with its unchanged body.",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
        "headers": {
            "type": "object",
            "required": [
                "Workspaced-Subject",
                "Workspaced-Reason",
                "Workspaced-Detail",
                "Workspaced-Headers",
            ],
            "properties": {
                "Workspaced-Subject": {
                    "type": "string",
                    "description": "The subject on which the message came.",
                },
                "Workspaced-Reason": {
                    "type": "string",
                    "enum": [str(reason) for reason in RejectReason],
                },
                "Workspaced-Detail": {"type": "string", "description": "Text for people."},
                "Workspaced-Headers": {
                    "type": "string",
                    "description": "The headers that came with the message, as JSON.",
                },
            },
        },
    },
    "resend": {
        "name": "resend",
        "summary": "Asks for facts that NATS may have lost. The body has no meaning.",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
    },
    "service_error": {
        "name": "service_error",
        "summary": "The request was not accepted; the NATS micro service headers say why.",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
        "headers": {
            "type": "object",
            "required": ["Nats-Service-Error", "Nats-Service-Error-Code"],
            "properties": {
                "Nats-Service-Error": {"type": "string", "description": "Text for people."},
                "Nats-Service-Error-Code": {
                    "type": "string",
                    "enum": ["400", "403", "404", "429", "500", "503"],
                },
            },
        },
    },
}
"""Messages that are neither events nor JSON bodies of rpcs."""


def _ref(name: str) -> Json:
    return {"$ref": f"#/$defs/{name}"}


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def files() -> dict[str, str]:
    """Return the text of each file of docs/schemas, by its path there."""
    made = schemas()
    documents: dict[str, Any] = {
        "asyncapi.json": asyncapi(made),
        "envelope.json": made.document("CloudEvent"),
    }
    for name, schema in made.events.items():
        documents[f"messages/{name}.v1.json"] = made.document(schema)
    for name, schema in made.bodies.items():
        documents[f"rpcs/{name}.body.json"] = made.document(schema)
    for name, schema in made.replies.items():
        documents[f"rpcs/{name}.reply.json"] = made.document(schema)
    for name, schema in made.arguments.items():
        documents[f"tools/{name}.args.json"] = made.document(schema)
    for name, schema in made.results.items():
        documents[f"tools/{name}.result.json"] = made.document(schema)
    stored = client_tools()
    for name in get_args(Format):
        documents[f"models/{name}.json"] = in_format(stored, name)
    return {
        path: json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        for path, document in documents.items()
    }


CLIENT_TOOLS: Final = Path(__file__).parents[1] / "client/workspaced/tools.json"


def client_tools() -> list[Json]:
    """Return the content of the file with the tools for models, which is part of the Python client."""
    made = schemas()
    found = []
    for tool, description in DESCRIPTIONS.items():
        schema = _for_models(made.document(made.arguments[tool]))
        if tool in ("create_workspace", "read_template"):
            schema.pop("required", None)  # `template` may stand for `template_id`
        if tool == "read_template":
            schema["required"] = ["template_id"]
        found.append(
            {
                "name": tool,
                "description": description,
                "in_workspace": tool in EXEC_TOOLS,
                "arguments": schema,
            }
        )
    return found


def _for_models(schema: Any) -> Any:
    """Return a schema without what only readers of documents need: null for "absent", titles, defaults of null."""
    if isinstance(schema, list):
        return [_for_models(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: _for_models(value)
        for key, value in schema.items()
        if key != "$schema"
        and not (key == "title" and isinstance(value, str))
        and not (key == "default" and value is None)
    }
    if "anyOf" in kept:
        kinds = [kind for kind in kept.pop("anyOf") if kind != {"type": "null"}]
        kept |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return kept


def write(directory: Path) -> None:
    """Write the files into `directory`, and delete all other JSON files there."""
    made = files()
    for found in directory.rglob("*.json"):
        if str(found.relative_to(directory)) not in made:
            found.unlink()
    for path, text in made.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    CLIENT_TOOLS.write_text(json.dumps(client_tools(), indent=2, ensure_ascii=False) + "\n")
