"""Hostile messages; seed, target and index determine each one, so it can be made again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tests.rigs.messages import CONTENT_TYPE, cloud_event

INBOUND = ("tool", "provisioner", "agent")
TOOLS = (
    "create_workspace",
    "start_workspace",
    "stop_workspace",
    "list_templates",
    "read_template",
)
RPCS = (
    *TOOLS,
    "cancel",
    "get_chat",
    "list_chats",
    "list_orphans",
    "read_log",
    "read_events",
    "template_archive",
    "agent_credential",
    "frontend_credential",
)
LARGEST = 256 * 1024
CHATS = 300
"""Chats of a run for each kind of subject: few enough that events collide in one chat, and that the
database stays small."""

Random = random.Random
Json = Any


@dataclass(frozen=True)
class Hostile:
    """One hostile message."""

    target: str
    index: int
    subject: str
    body: bytes
    headers: dict[str, str]


def message(seed: int, target: str, index: int) -> Hostile:
    """Return a message; `target` is an inbound kind, `presence` or the name of an rpc."""
    rng = Random(f"{seed}/{target}/{index}")
    if target in RPCS:
        return Hostile(target, index, f"workspaced.rpc.{target}", _body(rng, _rpc(rng, target)), {})
    chat = _id(rng, target, rng.randrange(CHATS)) if rng.random() < 0.97 else _identifier(rng)
    headers = {"Content-Type": CONTENT_TYPE, **_headers(rng), "Fuzz": str(index)}
    if target == "presence":
        subject = f"workspaced.presence.{_token(chat)}.{_token(_identifier(rng))}"
        return Hostile(target, index, subject, rng.randbytes(rng.randrange(64)), headers)
    sender = {"tool": "fuzz", "provisioner": "forge"}.get(target) or _id(rng, "agent", chat)
    if rng.random() < 0.03:
        sender = _token(_identifier(rng))
    event = _event(rng, target, chat, sender)
    subject = f"workspaced.in.{target}.{_token(chat)}.{sender}"
    return Hostile(target, index, subject, _body(rng, event), headers)


def text(rng: Random) -> str:
    """Return a text that careless code may handle wrongly."""
    return rng.choice(_TEXTS)(rng)


_TEXTS: tuple[Callable[[Random], str], ...] = (
    lambda _: "",
    lambda _: "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    lambda _: "\u202egnp.exe\u2066\u200f",
    lambda _: "a\x00b",
    lambda _: "\ud800",
    lambda _: "\U0001f4a9" * 40,
    lambda _: "'; drop table chat; --",
    lambda _: "$(touch /tmp/pwned)`id`",
    lambda _: "../../../../etc/passwd",
    lambda _: "a.b.*.>",
    lambda _: "{}",
    lambda _: "\r\nNats-Rollup: all",
    lambda _: "%s%n{0}",
    lambda rng: "x" * rng.choice((33, 129, 1_025, 40_000)),
    lambda rng: "".join(map(chr, rng.choices(range(1, 0xD7FF), k=20))),
)
_NUMBERS = (0, -1, 2**31, 2**53, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 1e-320)
_TIMES = (
    "2026-01-01T00:00:00",
    "0000-00-00T00:00:00Z",
    "9999-12-31T23:59:59.999999-23:59",
    "0001-01-01T00:00:00+14:00",
    "2026-02-30T00:00:00Z",
    "now",
    "2026-01-01t00:00:00z",
)
_RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999999",
    "1" * 400,
    "[" * 40 + "]" * 40,
    "[" * 50_000,
    '{"a":' * 33 + "1" + "}" * 33,
    '"\\ud800"',
    '"\\u0000"',
    '"\\udc00\\ud800"',
    "tru",
    '{"a":1,"a":2}',
    "-",
    '"\x01"',
)


def _id(rng: Random, *name: object) -> str:
    """Return a UUID that depends only on the name."""
    del rng
    made = Random(repr(name))
    return str(UUID(int=made.getrandbits(128), version=4))


def _identifier(rng: Random) -> str:
    fresh = str(UUID(int=rng.getrandbits(128), version=4))
    return rng.choice((fresh, fresh.upper(), "é" * 12, fresh[:-1], "new", "x" * 200, "A_b-9"))


def _token(text: str) -> str:
    """Return the text without the characters that a token of a NATS subject can't have."""
    return "".join(letter for letter in text if letter > " " and letter not in ".*>") or "x"


def _event(rng: Random, kind: str, chat: str, sender: str) -> dict[str, Json]:
    name, data = rng.choice(_FACTS[kind])(rng, chat, sender)
    source = {"tool": "/chat/", "provisioner": "/provisioner/", "agent": "/agent/"}[kind] + sender
    event_id = str(UUID(int=rng.getrandbits(128), version=4))
    event = cloud_event(name, source, chat, data, id=event_id, time="2026-01-01T00:00:00Z")
    if rng.random() < 0.05:
        event["id"] = rng.choice(("same", "x" * 1024, "x" * 1025, "\u202e"))
    if rng.random() < 0.1:
        event["time"] = rng.choice(_TIMES)
    if rng.random() < 0.05:
        event["traceparent"] = text(rng)
    if rng.random() < 0.05:
        event["type"] = f"workspaced.{name}.v{rng.choice((0, 2, 99, 99999))}"
    if rng.random() < 0.05:
        other = rng.choice([*_FACTS])
        event["type"] = f"workspaced.{rng.choice(_FACTS[other])(rng, chat, sender)[0]}.v1"
    return event


def _tool(rng: Random, chat: str, sender: str) -> tuple[str, dict[str, Json]]:
    del sender
    return "tool_requested", {"tool": rng.choice(TOOLS), **_call(rng, chat)}


def _call(rng: Random, chat: str) -> dict[str, Json]:
    args: dict[str, Json] = {
        "template_id": _identifier(rng),
        "name": text(rng),
        "parameters": {text(rng): text(rng)},
        "query": text(rng),
        "page": rng.choice(_NUMBERS[:3]),
    }
    keys = rng.sample([*args], k=rng.randrange(4))
    return {
        "call_id": f"c{rng.randrange(50)}",
        "args": {key: args[key] for key in keys},
        "organization_id": _id(rng, "organization", chat),
        "owner_id": _id(rng, "owner", chat),
        "owner_name": text(rng) if rng.random() < 0.3 else "ann",
    }


def _build(rng: Random, chat: str) -> dict[str, Json]:
    workspace = _id(rng, "workspace", chat, rng.randrange(3))
    number = rng.randrange(8) if rng.random() < 0.9 else 2**53 - 1
    return {
        "workspace_id": workspace,
        "build_id": _id(rng, "build", workspace, number),
        "build_number": number,
        "transition": rng.choice(("start", "start", "stop", "delete")),
    }


def _fact(name: str, *more: str) -> Callable[..., tuple[str, dict[str, Json]]]:
    def make(rng: Random, chat: str, sender: str) -> tuple[str, dict[str, Json]]:
        known: dict[str, Json] = {
            "error": text(rng),
            "error_code": rng.choice(("INSUFFICIENT_QUOTA", text(rng))),
            "quota": {"credits_consumed": rng.choice(_NUMBERS), "budget": 1},
            "workspace_name": text(rng),
            "template_version_id": _id(rng, "version"),
            "agents": [
                {"id": _id(rng, "agent", chat), "name": text(rng) or "a", "display_order": n}
                for n in range(rng.choice((0, 1, 2, 65)))
            ],
            "agent_id": sender,
            "sequence": rng.choice((rng.randrange(1000), 2**63 - 1, 0)),
            "lifecycle": rng.choice(("ready", "starting", "start_error", "off", "dancing")),
            "reason": text(rng),
            "call_id": f"c{rng.randrange(50)}",
        }
        base = (
            _build(rng, chat) if name.partition("_")[0] in ("build", "agent", "workspace") else {}
        )
        return name, {**base, **{key: known[key] for key in more}}

    return make


_FACTS: dict[str, tuple[Callable[..., tuple[str, dict[str, Json]]], ...]] = {
    "tool": (_tool, _tool, _fact("tool_canceled", "call_id"), _fact("delete_requested", "reason")),
    "provisioner": (
        _fact("build_started", "workspace_name"),
        _fact("build_succeeded", "template_version_id", "agents"),
        _fact("build_failed", "error", "error_code", "quota"),
        _fact("build_canceled"),
        _fact("workspace_deleted"),
    ),
    "agent": (
        _fact("agent_connected", "agent_id", "sequence"),
        _fact("agent_disconnected", "agent_id", "sequence", "reason"),
        _fact("agent_lifecycle", "agent_id", "sequence", "lifecycle"),
    ),
}


def _rpc(rng: Random, name: str) -> dict[str, Json]:
    chat = _id(rng, "rpc", rng.randrange(CHATS))
    known: dict[str, Json] = {
        "chat_id": chat,
        "call_id": f"c{rng.randrange(50)}",
        "build_id": _id(rng, "build", chat),
        "workspace_id": _id(rng, "workspace", chat),
        "agent_id": _id(rng, "agent", chat),
        "after": rng.choice(_NUMBERS),
        "state": rng.choice(("ready", text(rng))),
        "cursor": _identifier(rng),
        "version_id": _identifier(rng),
        "offset": rng.choice(_NUMBERS),
        "chat_ids": [chat] * rng.choice((0, 1, 100, 101)),
        "ttl_seconds": rng.choice((60, *_NUMBERS)),
    }
    if name in TOOLS:
        return {"chat_id": chat, **_call(rng, chat)}
    keys = {
        "cancel": ("chat_id", "call_id"),
        "get_chat": ("chat_id",),
        "list_chats": ("state", "cursor"),
        "list_orphans": ("cursor",),
        "read_log": ("chat_id", "build_id", "after"),
        "read_events": ("chat_id", "after"),
        "template_archive": ("version_id", "offset"),
        "agent_credential": ("chat_id", "workspace_id", "build_id", "agent_id"),
        "frontend_credential": ("chat_ids", "ttl_seconds"),
    }[name]
    return {key: known[key] for key in keys}


def _headers(rng: Random) -> dict[str, str]:
    if rng.random() < 0.8:
        return {}
    odd = (
        ("Nats-Rollup", ("all", "sub", "x")),
        ("Nats-TTL", ("1s", "never", "-1")),
        ("Nats-Schedule", ("@at 2026-01-01T00:00:00Z", "@every 1s")),
        ("Nats-Schedule-Target", ("workspaced.in.tool.x.y",)),
        ("Nats-Expected-Last-Sequence", ("0", "99999999999", "x")),
        ("Nats-Expected-Last-Subject-Sequence", ("0", "7")),
        ("Nats-Expected-Stream", ("WORKSPACED_IN", "OTHER")),
        ("Nats-Expected-Last-Msg-Id", ("x",)),
        ("Nats-Msg-Id", ("same", f"/chat/fuzz:{rng.randrange(9)}")),
        ("Nats-Batch-Id", ("b",)),
        ("Nats-Batch-Sequence", ("1", "1001")),
        ("Nats-Batch-Commit", ("1",)),
        ("Nats-Incr", ("1",)),
        ("Nats-Marker-Reason", ("MaxAge",)),
        ("Content-Type", ("text/plain", "application/cloudevents+json; charset=x", "", "é")),
        ("content-type", ("text/html",)),
        ("Workspaced-Reason", ("internal",)),
        ("Status", ("503",)),
        ("X" * 200, ("y" * 4_000,)),
        ("traceparent", ("00-0-0-0", "\u202e")),
    )
    return {name: rng.choice(values) for name, values in rng.sample(odd, k=rng.choice((1, 1, 2)))}


def _body(rng: Random, valid: dict[str, Json]) -> bytes:
    how = rng.random()
    if how < 0.12:
        return _raw(rng, valid)
    if how < 0.3:
        return _dumped(valid)  # valid messages are among them
    holes: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _mutate(rng, valid, holes)
    body = _dumped(valid)
    for hole, raw in holes.items():
        body = body.replace(f'"{hole}"'.encode(), raw.encode("utf-8", "surrogatepass"))
    return body


def _mutate(rng: Random, root: dict[str, Json], holes: dict[str, str]) -> None:  # noqa: C901 — flat
    """Change one random part of a JSON value."""
    inner: Json = root
    while True:
        if not inner:
            return
        key = rng.choice([*inner]) if isinstance(inner, dict) else rng.randrange(len(inner))
        if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.3:
            break
        inner = inner[key]
    match rng.randrange(8):
        case 0:
            del inner[key]
        case 1:
            inner[key] = text(rng)
        case 2:
            inner[key] = rng.choice(_NUMBERS)
        case 3:
            inner[key] = rng.choice((None, True, [], {}, [inner[key]], {"a": inner[key]}))
        case 4:
            inner[key] = rng.choice(_TIMES)
        case 5:
            hole = f"@{len(holes)}@"
            holes[hole] = rng.choice(_RAW)
            inner[key] = hole
        case 6 if isinstance(inner, dict):
            inner[text(rng)] = text(rng)
        case _:
            inner[key] = _identifier(rng)


def _dumped(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _raw(rng: Random, valid: dict[str, Json]) -> bytes:
    whole = _dumped(valid)
    match rng.randrange(9):
        case 0:
            return b""
        case 1:
            return rng.randbytes(rng.choice((1, 17, 400)))
        case 2:
            return whole[: rng.randrange(len(whole))]
        case 3:
            where = rng.randrange(len(whole))
            return whole[:where] + rng.randbytes(3) + whole[where:]
        case 4:
            return b"\xef\xbb\xbf" + whole
        case 5:
            return rng.choice((b"[", b'{"a":', b"[{")) * rng.choice((31, 33, 5_000))
        case 6:
            return json.dumps(valid).encode(rng.choice(("utf-16", "utf-32", "utf-7")))
        case 7 if rng.random() < 0.02:
            return whole[:-1] + b" " * (LARGEST - len(whole) + rng.randrange(3)) + whole[-1:]
        case _:
            return whole[:-1] + b"," + whole[1:]
