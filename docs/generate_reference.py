"""The reference pages in docs/reference, one for each kind of program, generated from the types of the code.

`make reference` writes them. Rpcs, events and their keys come from the models, subjects from the permissions of
the program's key, limits from the constants that enforce them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from workspaced import build_log

from bus import subjects
from bus.nats_client import NEEDED_PAYLOAD
from bus.streams import pool_consumer
from docs.generate_schemas import CHANNELS, PARAMETERS, RPCS, TOOLS, Channel, Json, Schemas, schemas
from handlers.access.accounts import FRONTENDS_RPC
from handlers.access.issued_keys import agent_grant, frontend_grant, max_lifetime
from handlers.access.permissions import PERMISSIONS, Permissions, provisioner_permissions
from handlers.gateway import exec_calls, gateway, http, queries, requests, tool_calls
from handlers.setting_flags import DEFAULT_ORGANIZATION
from handlers.template_archive import MAX_PACKED_BYTES
from statemachine import codec, events, exec_tools
from statemachine.chat import Limits
from statemachine.exec_tools import EXEC_TOOLS

_KIB: Final = 1024
_HUGE: Final = 2**31
"""Limits of numbers beyond this one are those of their storage, and tell readers nothing."""
_LATER: Final = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Reader:
    """A kind of program that talks to workspaced."""

    title: str
    guide: str
    """The page that explains how to write one."""
    key: str
    permissions: Permissions
    rpcs: tuple[str, ...]
    limits: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    """Pairs: a failure that is no error of an rpc, and what the reader can do about it."""


def _kib(size: int) -> str:
    return f"{size // _KIB} KiB"


def _mib(size: int) -> str:
    return f"{size // _KIB // _KIB} MiB"


_MESSAGES_LIMITS: Final = (
    ("an event", f"{_kib(codec.MAX_SIZE)}; a larger one is a dead letter `too_large`"),
    ("ids of calls, names of services, pools and provisioners", "1 to 128 of `A-Z a-z 0-9 _ -`"),
)
_RPC_LIMITS: Final = (
    ("a body", f"{_kib(requests.MAX_BODY)}; 413"),
    ("rpcs in progress for one caller", f"{gateway.MAX_PER_CALLER} at each gateway; 429"),
)
_PAGES: Final = (
    (
        "a page of chats, log lines, events, keys or tokens",
        f"{queries.PAGE} entries, {_kib(queries.PAGE_BYTES)}",
    ),
)
_CALLS_LIMITS: Final = (
    (
        "an rpc of a tool is held",
        f"{tool_calls.MAX_WAIT / 60:g} min; then 503: ask again with the same `call_id`",
    ),
    ("`wait_seconds` of commands", f"{exec_tools.LONGEST_WAIT:g}; more is taken as that"),
    ("the answer of an agent", f"`wait_seconds` + {exec_calls.PATIENCE:g} s; then 504"),
    ("`output` and `content` of one answer", f"{_kib(exec_tools.PAGE)}; `next` goes on"),
)
_LOG_LIMITS: Final = (
    ("collecting of log lines", f"{build_log.COLLECT_SECONDS * 1000:g} ms"),
    ("`output` of one log event", _kib(build_log.MESSAGE_SIZE)),
    ("the log of one build", _mib(build_log.BUILD_LOG_SIZE)),
)


def _lifetime(role: str) -> tuple[str, str]:
    return (f"a key for `{role}`", f"{max_lifetime(role) / 86400:g} days at most")


def _permitted_rpcs(permissions: Permissions) -> tuple[str, ...]:
    prefix = subjects.rpc("")
    return tuple(
        name.removeprefix(prefix) for name in permissions.publish if name.startswith(prefix)
    )


_CHAT: Final = "{chat_id}"
READERS: Final[Mapping[str, Reader]] = {
    "chat-service": Reader(
        "Reference for chat services",
        "chat-services.md",
        "`credentials/chat-service.nk` of `workspaced up`, or `workspaced credentials issue --role chat-service`; with "
        "`--no-exec` every rpc of a tool that runs in the workspace is refused with 403",
        PERMISSIONS["chat-service"],
        _permitted_rpcs(PERMISSIONS["chat-service"]),
        (
            *_MESSAGES_LIMITS,
            *_RPC_LIMITS,
            *_CALLS_LIMITS,
            *_PAGES,
            _lifetime("chat-service"),
            _lifetime("frontend"),
        ),
    ),
    "frontend": Reader(
        "Reference for frontends",
        "frontends.md",
        "the reply of the rpc `frontend_credential`, which the chat service calls",
        frontend_grant(
            name="key", chat_ids=(_CHAT,), expires_at=_LATER, exec_allowed=True
        ).permissions,
        (FRONTENDS_RPC,),  # permitted by an import of their account, not by the key
        (_lifetime("frontend"), ("chats of one key", "100"), *_LOG_LIMITS[1:]),
        (
            "Events of commands (`workspaced.ui.{chat_id}.exec.…`) come only if the key was issued with `exec: true`.",
        ),
    ),
    "provisioner": Reader(
        "Reference for provisioners",
        "provisioners.md",
        "`workspaced credentials issue --role provisioner --pool POOL --name NAME`; agents get theirs from the rpc "
        "`agent_credential`",
        provisioner_permissions("{pool}", "{provisioner}"),
        _permitted_rpcs(provisioner_permissions("{pool}", "{provisioner}")),
        (
            *_MESSAGES_LIMITS,
            *_RPC_LIMITS,
            *_LOG_LIMITS,
            ("`error` of `build_failed`", f"{_kib(events.ERROR_SIZE)}; the end is kept"),
            ("other texts of facts", _kib(events.TEXT_SIZE)),
            (
                "a job without an acknowledgement or `+WPI`",
                f"comes again after {pool_consumer('any').ack_wait:g} s; send `+WPI` every 10 s at least",
            ),
            (
                "the end of a canceled build",
                f"{Limits().cancel.total_seconds():g} s; then workers no longer wait for it",
            ),
            ("the tar.gz of a template's folder", _mib(MAX_PACKED_BYTES)),
            ("an answer of `template_archive`", _kib(queries.CHUNK)),
            ("a message of NATS", _mib(NEEDED_PAYLOAD)),
            _lifetime("provisioner"),
        ),
        (
            "The key `credentials/provisioner.nk` of `workspaced up` serves every pool under every name.",
            "Each job has a reply subject below `$JS.ACK`: publish `+ACK`, `+WPI` or `-NAK` on it. Ignore unknown keys.",
        ),
        (
            (
                "no answer to a publish, a pull or an rpc; 429; 500 and above",
                "try again with growing pauses, for as long as it takes",
            ),
            ("`template_archive`: 404", "there is no such version: fail the build"),
            (
                "`agent_credential`: 403",
                "the build is not the newest of its workspace any more, or not of your pool: do not start the agent",
            ),
            ("a permissions violation", "the key is of another pool, name or role: stop"),
            (
                "NATS answers a fact with `duplicate: true`",
                "publish it once more without `Nats-Msg-Id`: another sender may have used the id before",
            ),
            (
                "a job cannot be read, but its ids and number can",
                "answer it with `build_failed`, but stop and delete a workspace also if its template is invalid",
            ),
            ("nothing of a job can be read", "acknowledge it; otherwise it comes again for ever"),
            (
                "a fact became a dead letter (the `notice` of the chat says so)",
                "correct it, and publish it with a new `id`",
            ),
            ("a fact about a workspace of another pool", "it moves nothing"),
        ),
    ),
    "agent": Reader(
        "Reference for agents",
        "agents.md",
        "the reply of the rpc `agent_credential`, which the provisioner calls",
        agent_grant(
            chat_id=_CHAT, build_id="{build_id}", agent_id="{agent_id}", expires_at=_LATER
        ).permissions,
        (),
        (*_MESSAGES_LIMITS, *_CALLS_LIMITS[1:], *_LOG_LIMITS),
    ),
    "operator": Reader(
        "Reference for operators",
        "operators.md",
        "`credentials/operator.nk` of `workspaced up`, or `workspaced credentials issue --role operator`; it permits "
        "everything that the keys of the other programs permit, too",
        PERMISSIONS["operator"],
        tuple(sorted((set(TOOLS) | set(RPCS)) - set(_permitted_rpcs(PERMISSIONS["chat-service"])))),
        (
            *_RPC_LIMITS,
            *_PAGES,
            _lifetime("operator"),
            ("a body over HTTP", f"{_kib(http.MAX_BODY)}; 413"),
        ),
        ("The rpcs of chat services are in [their reference](chat-service.md).",),
    ),
}

ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("the request is malformed; the text names each wrong field", "correct it"),
    403: (
        "the key does not permit this, for example commands with a key that was issued with `--no-exec`",
        "use another key",
    ),
    404: ("no such template version or key", "check the id"),
    409: (
        "the `call_id` was used in this chat with another tool or other arguments; nothing was done",
        "use a new `call_id`",
    ),
    413: (
        f"the body is larger than {_kib(requests.MAX_BODY)}, or the event than {_kib(codec.MAX_SIZE)}; nothing was done",
        "send less",
    ),
    429: ("a limit is reached; nothing was done", "ask again later with a new `call_id`"),
    500: ("a fault of workspaced; its log has the details", "report it"),
    502: (
        "the agent's answer cannot be read; nobody knows what was done",
        "ask again with the same `call_id`",
    ),
    503: (
        "a server is unavailable, or the answer took too long; the request may have been stored",
        "ask again with the same `call_id`",
    ),
    504: ("no agent answers; nobody knows what was done", "ask again with the same `call_id`"),
}
"""The service errors of rpcs: what each means, and what to do."""

MEANINGS: Final[Mapping[str, str]] = {
    **PARAMETERS,
    "workspace_id": "The id of the workspace",
    "workspace_name": "The name of the workspace",
    "template_id": "The id of the template",
    "organization_id": "The organization of the chat",
    "owner_id": "The owner of the chat",
    "owner_name": "The name of the owner",
    "public_key": "The key, as the reply that issued it names it",
    "exec_id": "The process, as `execute` returned it",
    "path": "A path in the workspace; a relative one starts at the agent's directory",
    "output": "Text for people",
    "next": "Goes into the next request to read on",
    "size": "In bytes",
    "agents": "All agents of the workspace",
    "build_number": "The number of the build",
    "role": "The role of the key or token",
    "token": "The bearer token",
    "seed": "The secret half of the key; connect with it",
    "inbox_prefix": "Connect with this inbox prefix",
    "state": "The state of the chat",
    "previous_state": "The state before",
    "origin": "Who wrote it",
    "id": "Its id",
    "name": "Its name",
    "display_name": "Text for people",
    "description": "Text for people",
    "readme": "Text for people, Markdown",
    "number": "Rises with each build of the workspace",
    "source": "Who sent the event",
    "type": "The type of the event",
    "message": "Text for people",
    "reason": "Why; a text for people unless values are listed",
    "command": "The line for `/bin/sh -c`",
    "cwd": "Where it runs",
    "offset": "Bytes before this piece",
    "exit_code": "The exit status, if it ended by itself",
    "signal": "A signal's name, without `SIG`",
    "status": "Whether it still runs, or is connected",
    "lifecycle": "How far the agent's start or stop is",
    "error": "Text for people: what went wrong",
    "error_code": "A code of the provisioner",
    "build_id": "The id of the build",
    "tool": "The name of the tool",
    "asked_at": "When it was requested",
    "expires_at": "When it stops being valid",
    "created_at": "When it was issued",
    "started_at": "When it started",
    "ended_at": "When it ended",
    "title": "Text for people",
    "count": "Entries on this page",
    "page": "The number of this page",
    "total_pages": "At least 1",
    "total_count": "Entries on all pages",
    "exec": "Whether commands may be run, or seen",
    "credits_consumed": "What the owner uses",
    "budget": "What the owner may use",
    "content": "The content of the file",
    "old": "The text to replace",
    "new": "The text that takes its place",
    "all": "Replace each occurrence",
    "kind": "What is at the path",
    "modified_at": "When the file was changed last",
    "cols": "Columns of the terminal",
    "rows": "Rows of the terminal",
    "value": "The value",
    "detail": "Text for people: what is wrong, or more about it",
    "field": "The argument or parameter that is wrong",
    "default": "The value unless another is given",
    "append": "Add to the end of the file",
    "create_directories": "Make the directories of the path that are missing",
    "limit": "Bytes at most",
    "after": "Read on from here",
    "version_id": "The id of the template version",
    "template_version_id": "The template version that was built",
    "sha256": "Of the whole archive, in hexadecimal digits",
    "stopped": "True",
    "started": "True",
    "no_build": "True: it was so already, and nothing was built",
    "created": "Whether a new workspace was made",
    "canceled": "Whether there was something to cancel",
    "revoked": "Whether it was valid until now",
    "is_error": "Whether the call itself was wrong",
    "quota": "The owner's quota",
    "validations": "Each value that does not fit",
    "signaled": "Whether anything was left to receive the signal",
    "replaced": "How many texts were replaced",
    "encoding": "How the content is written",
    "depth": "Levels of directories",
    "data": "What to write",
    "active_version_id": "The version that new workspaces use",
    "validation_min": "The smallest number, or of a text the shortest length",
    "validation_max": "The largest number, or of a text the greatest length",
    "preset_id": "The id of the preset",
    "stage": "The part that wrote it",
    "level": "`info`, `warn` or `error`",
    "sequence": "Counts from 1 for each build and origin",
    "state_before": "The state before the event",
    "state_after": "The state after the event",
    "event": "The event as it was accepted",
    "connections_ended": "How many connections NATS closed",
    "issued_at": "When it was issued",
    "revoked_at": "When it was revoked",
}
"""The meaning of keys that need no description of their own."""


def pages() -> dict[str, str]:
    """Return the text of each page, by its file name in docs/reference."""
    made = schemas()
    return {f"{name}.md": "\n".join(_page(reader, made)) for name, reader in READERS.items()}


def _page(reader: Reader, made: Schemas) -> Iterator[str]:
    yield f"# {reader.title}\n"
    yield "<!-- made by `make reference`, do not edit -->\n"
    yield f"[The guide](../{reader.guide}) explains how to use these; this page lists all of them.\n"
    yield f"**Key:** {reader.key}.\n"
    yield (
        "**Tables:** a key with `?` may be absent or null; *id* is 1 to 128 of `A-Z a-z 0-9 _ -`, *UUID* is in lower case, "
        "*time* is RFC 3339; `a.b` is the key `b` of the object `a`, and `a[].b` that of each object in the list `a`.\n"
    )
    for note in reader.notes:
        yield f"{note}\n"
    yield (
        f"**Organization:** an organization is a UUID. Templates that are pushed without one belong to the default "
        f"organization, `{DEFAULT_ORGANIZATION}` (the UUIDv5 of `workspaced:organization:default` in the URL "
        "namespace).\n"
    )
    yield from _subjects(reader)
    yield from _events(reader, made)
    if reader.rpcs:
        yield from _rpcs(reader, made)
    if reader.title.endswith("agents"):
        yield from _requests(made)
    if reader.rpcs:
        yield from _errors()
    if reader.failures:
        yield "## When something else fails\n"
        yield "| what happens | what to do |\n| --- | --- |"
        for what, advice in reader.failures:
            yield f"| {what} | {advice} |"
        yield ""
    yield "## Limits\n"
    yield "| | limit |\n| --- | --- |"
    for what, limit in reader.limits:
        yield f"| {what} | {limit} |"
    yield ""


def _subjects(reader: Reader) -> Iterator[str]:
    rights = reader.permissions
    yield "## Subjects\n"
    yield "The key permits these subjects, and the key's own inbox; `*` is any one token, `>` any number of tokens.\n"
    for verb, names, denied in (
        ("publish", rights.publish, rights.deny_publish),
        ("subscribe", rights.subscribe, rights.deny_subscribe),
    ):
        shown = [name for name in names if ".rpc." not in name and not name.startswith("_INBOX")]
        rpcs = [name for name in names if ".rpc." in name]
        more = [f"the rpcs below (`{subjects.rpc('<name>')}`)"] if rpcs else []
        excepted = f", but not {_codes(denied)}" if denied else ""
        yield f"- {verb}: {', '.join([*map(_code, shown), *more]) or 'nothing'}{excepted}"
    if rights.allow_responses:
        yield "- one answer to each request that it receives"
    yield ""


def _events(reader: Reader, made: Schemas) -> Iterator[str]:
    rights = reader.permissions
    if rights.publish == (
        ">",
    ):  # an operator reads everything; each event is on the page of its reader
        return
    seen: set[str] = set()
    for title, action, names in (
        ("Events that you publish", "receive", rights.publish),
        ("Events that you receive", "send", rights.subscribe),
    ):
        channels = [
            channel
            for channel in CHANNELS
            if channel.action == action
            and (_matches(channel, names) or _is_pulled(channel, rights))
        ]
        if not channels:
            continue
        yield f"## {title}\n"
        for channel in channels:
            stream = f" (stream `{channel.stream}`)" if channel.stream else ""
            yield f"### `{channel.address}`\n"
            yield f"{channel.summary}{stream}.\n"
            for name in channel.messages:
                if name not in made.events:
                    yield f"- `{name}`: the body has no meaning.\n"
                elif name in seen:
                    yield f"- `workspaced.{name}.v1`, as above.\n"
                else:
                    seen.add(name)
                    yield from _event(made, name)


def _event(made: Schemas, name: str) -> Iterator[str]:
    event = made.definitions[made.events[name]]
    data = made.definitions[event["properties"]["data"]["$ref"].rpartition("/")[2]]
    schema = f"[schema](../schemas/messages/{name}.v1.json)"
    yield f"**`workspaced.{name}.v1`** ({schema}): {event['description']}\n"
    yield from _keys(made, data)


def _matches(channel: Channel, names: Sequence[str]) -> bool:
    return any(subject_matches(name, channel.address) for name in names)


def _is_pulled(channel: Channel, rights: Permissions) -> bool:
    """Return whether the key may pull the channel's messages from a consumer, or read the last by direct get."""
    return channel.stream is not None and any(
        name.startswith("$JS.") and f".{channel.stream}." in name for name in rights.publish
    )


def subject_matches(pattern: str, address: str) -> bool:
    """Return whether a subject with `{names}` as tokens is covered by a subject with wildcards or names."""
    expression = "".join(map(_of_part, pattern.split(".")))
    return re.fullmatch(expression, f".{address}") is not None


def _of_part(part: str) -> str:
    if part == ">":
        return r"\..*"
    return r"\.[^.]+" if part == "*" else rf"\.(?:\{{\w+\}}|{re.escape(part)})"


def _rpcs(reader: Reader, made: Schemas) -> Iterator[str]:
    yield "## Rpcs\n"
    yield (
        f"Send the body as JSON to `{subjects.rpc('<name>')}`; the reply is JSON, or a service error (below). Keys that an "
        "rpc does not have are named in `ignored` of its reply.\n"
    )
    yield (
        "The reply of a tool is `{call_id, tool, is_error, result, conflict?, ignored?}`. `is_error: true` means that the "
        "call itself was wrong: its arguments, a name, a permission or the configuration; `result` is then `{error}`. "
        "With `is_error: false` a `result` that has the key `error` tells what happened to a build, to the quota, or to "
        "values that did not fit.\n"
    )
    for name in reader.rpcs:
        yield from _rpc(made, name)


def _rpc(made: Schemas, name: str) -> Iterator[str]:
    body = made.definitions[made.bodies[name]]
    yield f"### `{name}`\n"
    yield f"{body['description']} [Schema of the body](../schemas/rpcs/{name}.body.json)" + (
        f", [of the reply](../schemas/rpcs/{name}.reply.json).\n" if name in made.replies else ".\n"
    )
    yield from _keys(made, body)
    if name in made.arguments:
        yield f"`args` of `{name}` ([schema](../schemas/tools/{name}.args.json)):\n"
        yield from _keys(made, made.definitions[made.arguments[name]])
        yield f'`result` ([schema](../schemas/tools/{name}.result.json)); with `is_error` it is `{{"error": text}}`:\n'
        yield from _keys(made, made.definitions[made.results[name]])
    elif name in made.replies:
        yield "Reply:\n"
        yield from _keys(made, made.definitions[made.replies[name]])


def _requests(made: Schemas) -> Iterator[str]:
    yield "## Requests that you answer\n"
    yield "The tool is the last token of the subject; `args` has the keys below, `result` those of the answer.\n"
    for name in EXEC_TOOLS:
        yield f"### `{name}`\n"
        yield f"`args` ([schema](../schemas/tools/{name}.args.json)):\n"
        yield from _keys(made, made.definitions[made.arguments[name]])
        yield f"`result` ([schema](../schemas/tools/{name}.result.json)):\n"
        yield from _keys(made, made.definitions[made.results[name]])


def _errors() -> Iterator[str]:
    yield "## Errors of rpcs\n"
    yield (
        "The headers `Nats-Service-Error-Code` and `Nats-Service-Error` of a reply without a body. If nobody answers at "
        "all, no gateway runs; if NATS reports a permissions violation, the key does not permit the rpc, or there is none "
        "of that name.\n"
    )
    yield "| code | meaning | what to do |\n| --- | --- | --- |"
    for code, (meaning, advice) in ERRORS.items():
        yield f"| {code} | {meaning} | {advice} |"
    yield ""


def _keys(made: Schemas, schema: Json) -> Iterator[str]:
    """Describe the keys of an object, or of each of several objects of which it is one."""
    schema = _resolved(made, schema)
    variants = schema.get("anyOf") or schema.get("oneOf")
    if variants and "properties" not in schema:
        for variant in variants:
            resolved = _resolved(made, variant)
            if "properties" in resolved:
                yield f"*{resolved.get('description', resolved.get('title', ''))}*\n"
                yield from _keys(made, resolved)
        return
    properties: Json = schema.get("properties", {})
    if not properties:
        yield "No keys.\n"
        return
    yield "| key | value | meaning |\n| --- | --- | --- |"
    yield from _rows(made, schema, "", 2)
    yield ""


def _rows(made: Schemas, schema: Json, before: str, depth: int) -> Iterator[str]:
    """Yield a row for each key of an object, and below it those of the objects in it."""
    required = schema.get("required", ())
    for key, value in schema.get("properties", {}).items():
        optional = "" if key in required else "?"
        text = value.get("description") or _resolved(made, value).get("description")
        text = (
            MEANINGS.get(key, "")
            if text is None or "properties" in _resolved(made, value)
            else text
        )
        kind = _kind(made, value).removesuffix(" or null" if optional else "\n")
        name = f"{before}{key}"
        yield f"| `{name}{optional}` | {kind} | {_cell(text)} |"
        inner = _object_in(made, value)
        if inner is not None and depth:
            more = "[]." if _is_list(made, value) else "."
            yield from _rows(made, inner, f"{name}{more}", depth - 1)


def _object_in(made: Schemas, value: Json) -> Json | None:
    """Return the object that a value is, or that its entries are, if it has keys of its own."""
    schema = _resolved(made, value)
    for one in schema.get("anyOf", ()):
        if (found := _object_in(made, one)) is not None:
            return found
    if schema.get("type") == "array":
        return _object_in(made, schema.get("items", {}))
    return schema if schema.get("properties") else None


def _is_list(made: Schemas, value: Json) -> bool:
    schema = _resolved(made, value)
    return schema.get("type") == "array" or any(
        _is_list(made, one) for one in schema.get("anyOf", ())
    )


def _resolved(made: Schemas, schema: Json) -> Json:
    if "$ref" in schema:
        return _resolved(made, made.definitions[schema["$ref"].rpartition("/")[2]])
    return schema


def _kind(made: Schemas, value: Json) -> str:
    """Return the type of a value in words."""
    schema = _resolved(made, value)
    if "const" in schema:
        return _code(
            str(schema["const"]).lower() if isinstance(schema["const"], bool) else schema["const"]
        )
    if "enum" in schema:
        return ", ".join(_code(str(one)) for one in schema["enum"])
    if kinds := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(made, one) for one in kinds))
    match schema.get("type"):
        case "string":
            return _text(schema)
        case "integer" | "number":
            return f"{schema['type']}{_bounds(schema, ('minimum', '≥'), ('exclusiveMinimum', '>'), ('maximum', '≤'))}"
        case "array":
            inner = schema.get("items", {})
            return f"list of {_inner(made, inner)}{_bounds(schema, ('minItems', '≥'), ('maxItems', '≤'))}"
        case "object":
            return _inner(made, schema)
        case "boolean":
            return "true or false"
        case "null":
            return "null"
    return "any value"


def _text(schema: Json) -> str:
    pattern = schema.get("pattern", "")
    if pattern.startswith("^[0-9a-f]{8}-"):
        return "UUID"
    if pattern.endswith("{1,128}$"):
        return "id"
    if schema.get("format") == "date-time":
        return "time"
    return f"text{_bounds(schema, ('maxLength', '≤'))}"


def _inner(made: Schemas, schema: Json) -> str:
    """Return the keys of an object in a list or in another object."""
    resolved = _resolved(made, schema)
    if resolved.get("type") != "object":
        return _kind(made, resolved)
    if isinstance(more := resolved.get("additionalProperties"), dict):
        return f"object: name → {_kind(made, more)}"
    return "object"


def _bounds(schema: Json, *keys: tuple[str, str]) -> str:
    return "".join(
        f" {sign} {schema[key]:.12g}" for key, sign in keys if abs(schema.get(key, _HUGE)) < _HUGE
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(map(_code, names))


def write(directory: Path) -> None:
    """Write the pages into `directory`, and delete all other pages there."""
    made = pages()
    directory.mkdir(parents=True, exist_ok=True)
    for found in directory.glob("*.md"):
        if found.name not in made:
            found.unlink()
    for name, text in made.items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
