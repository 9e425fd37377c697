"""Hostile input to functions that need no bus: auth callout requests and alarms."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from datetime import UTC, datetime

from bus import subjects
from bus.streams import TIMER
from handlers.access import auth_protocol, nkey
from handlers.worker.deliveries import AlarmMessage, Dead, read
from tests.fuzz.hostile import _body, _mutate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class _Delivery:
    """The attributes of a delivery that `read` uses."""

    stream, expired, sequence, reply = TIMER.name, False, 1, ""
    headers: dict[str, str] = {}

    def __init__(self, subject: str, data: bytes) -> None:
        self.subject, self.data = subject, data


async def ask_who(seed: int, count: int) -> Counter[str]:
    """Answer auth callout requests; each must be refused or recognized as not the server's."""
    issuer, server, client = (nkey.new_seed(kind) for kind in ("account", "account", "user"))
    ends: Counter[str] = Counter()

    async def nobody(request: auth_protocol.ConnectRequest) -> auth_protocol.DenialReason:
        ends["looked up"] += request.public_key == nkey.public_key(client)
        return auth_protocol.DenialReason.UNKNOWN

    for index in range(count):
        rng = random.Random(f"{seed}/callout/{index}")
        claims = _question(server, client, rng)
        holes: dict[str, str] = {}
        for _ in range(rng.randrange(3)):
            _mutate(rng, claims, holes)
        body = json.dumps(claims).encode("utf-8", "surrogatepass")
        for hole, raw in holes.items():
            body = body.replace(f'"{hole}"'.encode(), raw.encode())
        request = _signed(server, body)
        if rng.random() < 0.3:
            where = rng.randrange(len(request))
            request = request[:where] + rng.randbytes(rng.randrange(9)) + request[where + 1 :]
        elif rng.random() < 0.1:
            request = _body(rng, {"a": {"b": "c"}})
        try:
            await auth_protocol.answer(request, issuer, nobody, NOW)
        except auth_protocol.InvalidAuthRequest:
            ends["not the server's"] += 1
        else:
            ends["refused"] += 1
    return ends


def read_alarms(seed: int, count: int) -> Counter[str]:
    """Read payloads on the subject of alarms; each must be an alarm or a dead letter."""
    ends: Counter[str] = Counter()
    for index in range(count):
        rng = random.Random(f"{seed}/alarm/{index}")
        body = _body(rng, {"at": rng.choice((1, 2**70, -(2**62), 0.5, 1e300, "7", None))})
        item = read(_Delivery(subjects.ALARM_RANG, body), NOW)  # type: ignore[arg-type]
        assert isinstance(item, AlarmMessage | Dead), item
        ends[type(item).__name__] += 1
    return ends


def _question(server: str, client: str, rng: random.Random) -> dict[str, object]:
    nonce = f"nonce-{rng.randrange(9)}"
    signature = base64.urlsafe_b64encode(nkey.sign(client, nonce.encode())).decode().rstrip("=")
    identity = nkey.public_key(server)
    return {
        "iss": identity,
        "nats": {
            "server_id": {"id": identity, "name": "n"},
            "type": "authorization_request",
            "user_nkey": nkey.public_key(client),
            "client_info": {"nonce": nonce, "host": "127.0.0.1"},
            "connect_opts": {"nkey": nkey.public_key(client), "sig": signature},
        },
    }


def _signed(server: str, claims: bytes) -> bytes:
    content = _encoded(b'{"typ":"JWT","alg":"ed25519-nkey"}') + b"." + _encoded(claims)
    return content + b"." + _encoded(nkey.sign(server, content))


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
