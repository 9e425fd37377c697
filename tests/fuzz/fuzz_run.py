"""Hostile messages on real servers and processes: each must be applied or dead-lettered."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import asyncpg
from nats.aio.msg import Msg

from statemachine.codec import decode
from statemachine.events import Event
from tests.fuzz.hostile import INBOUND, RPCS, Hostile, message
from tests.rigs.client import (
    Chat,
    ChatService,
    Participant,
    Provisioner,
    cancel_and_wait,
    connected,
    role_options,
)
from tests.rigs.fleet import Fleet
from tests.rigs.processes import resident_mib
from tests.rigs.world import ORGANIZATION, POOL

FOUND = Path(__file__).parent / "found"
"""Messages that once did harm, one file each; every run sends them again."""
REASONS = {
    "not_json",
    "not_cloudevents",
    "bad_type",
    "bad_source",
    "bad_data",
    "chat_mismatch",
    "too_large",
}
"""Valid reasons of a dead letter; the reason `internal` would mean a bug of ours."""
CODES = frozenset({400, 403, 404, 409, 413, 429, 502, 503, 504})
AT_ONCE = 300
PIECE = 2_000
PATIENCE = 60.0
GROWTH, SPARE = 1.3, 40.0
"""How much the memory may grow from the first tenth to the end: by this factor plus these MiB."""


class Harm(AssertionError):
    """A hostile message did harm."""


@dataclass
class Figures:
    """The outcomes of the messages to one target."""

    sent: int = 0
    stored: int = 0
    refused: int = 0
    """Refused by the server: their headers ask for what the streams here do not allow."""
    repeated: int = 0
    """Dropped by the server as duplicates: it knew their message id."""
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        dead = sum(self.reasons.values())
        kinds = ", ".join(f"{name} {n}" for name, n in sorted(self.reasons.items()))
        return (
            f"{self.sent} sent in {self.seconds:.1f} s ({self.sent / max(self.seconds, 1e-9):.0f}/s): "
            f"stored {self.stored}, refused by the server {self.refused}, repeats {self.repeated}; "
            f"handled {self.stored - dead}, other {dead} ({kinds})"
        )


class FuzzRun:
    """An attacker with the rights of an operator, and a healthy chat served at the same time."""

    def __init__(self, fleet: Fleet, template_id: str, pids: Mapping[str, int], seed: int) -> None:
        self.attacker, self.service = Participant(), ChatService()
        self.provisioner = Provisioner(POOL)
        self.seed, self.pids, self._template, self._fleet = seed, pids, template_id, fleet
        self.figures: dict[str, Figures] = {}
        self.memory: dict[str, list[float]] = {role: [] for role in pids}
        self.served = 0
        """How often the healthy chat was served."""
        self._dead: dict[str, dict[int, str]] = {kind: {} for kind in INBOUND}
        self._identities: set[tuple[str, str, str]] = set()
        self._changed = asyncio.Condition()

    async def send(self, target: str, indexes: Iterable[int]) -> Figures:
        """Send the messages with these indexes; return when each is handled."""
        return await self.send_all(target, (message(self.seed, target, n) for n in indexes))

    async def send_all(self, target: str, messages: Iterable[Hostile]) -> Figures:
        """Send messages to a target in pieces; raise Harm if one of a piece did harm."""
        figures = self.figures.setdefault(target, Figures())
        begun, pending = time.monotonic(), iter(messages)
        while piece := list(islice(pending, PIECE)):
            if target in RPCS:
                await self._ask(piece, figures)
            else:
                await self._publish(target, piece, figures)
            for role, pid in self.pids.items():
                try:
                    self.memory[role].append(resident_mib(pid))
                except (OSError, IndexError):
                    raise Harm(
                        f"the {role} is gone: {target} {piece[0].index} to {piece[-1].index}"
                    ) from None
        figures.seconds += time.monotonic() - begun
        return figures

    async def healthy(self) -> None:
        """Create and stop a workspace for a new chat, as if there were no attack."""
        chat = await self.service.chat()
        chat.organization_id = ORGANIZATION
        made = await self._called(chat, "create_workspace", {"template_id": self._template})
        assert made["created"], made
        assert (await self._called(chat, "stop_workspace", {}))["stopped"]
        self.served += 1

    async def drained(self) -> None:
        """Wait until the worker has acked all messages of WORKSPACED_IN."""
        # This polls, one round trip each: the server does not announce that a stream is empty.
        async with asyncio.timeout(PATIENCE):
            while (await self.attacker.js.stream_info("WORKSPACED_IN")).state.messages:
                pass

    async def check(self) -> None:
        """Check that all valid events are applied, and no others."""
        await self.drained()
        database = await asyncpg.connect(self._fleet.database_url)
        try:
            rows = await database.fetch("select distinct chat_id from event_identity")
            chats = {str(row["chat_id"]) for row in rows}
            wanted = {chat for chat, _, _ in self._identities}
            applied = await database.fetchval(
                "select count(*) from event_identity where chat_id = any($1)", list(wanted)
            )
        finally:
            await database.close()
        if wanted - chats or applied != len(self._identities):
            raise Harm(f"{len(self._identities)} events were to be applied, {applied} are")

    def flat(self) -> None:
        """Check that no process's memory grew much after the first tenth of the run."""
        for role, seen in self.memory.items():
            first = max(seen[: max(1, len(seen) // 10)])
            if seen[-1] > GROWTH * first + SPARE:
                raise Harm(f"the {role} grew from {first:.0f} to {seen[-1]:.0f} MiB: {seen}")

    async def listen(self) -> None:
        """Subscribe to dead letters."""
        await self.attacker.client.subscribe(
            "workspaced.dead.>", cb=self._hear, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self.attacker.flush()

    async def _publish(self, target: str, piece: list[Hostile], figures: Figures) -> None:
        now, expected = datetime.now(UTC), dict[int, str]()
        gate = asyncio.Semaphore(AT_ONCE)

        async def put(one: Hostile) -> None:
            async with gate:
                reply = await self.attacker.client.request(
                    one.subject, one.body, timeout=PATIENCE, headers=one.headers
                )
            ack = json.loads(reply.data)
            figures.sent += 1
            if "error" in ack:
                figures.refused += 1
            elif ack.get("duplicate"):
                figures.repeated += 1
            else:
                figures.stored += 1
                if target in INBOUND and (reason := self._judged(one, now)) is not None:
                    expected[one.index] = reason

        await asyncio.gather(*map(put, piece))
        if target not in INBOUND:
            return
        dead = self._dead[target]
        try:
            async with asyncio.timeout(PATIENCE), self._changed:
                await self._changed.wait_for(lambda: expected.keys() <= dead.keys())
        except TimeoutError:
            self._blame(piece, expected.keys() - dead.keys(), "was neither handled nor buried")
        await self.drained()
        self._blame(piece, dead.keys() - expected.keys(), "was buried though it is sound")
        wrong = {n for n in expected if dead[n] != expected[n] or dead[n] not in REASONS}
        self._blame(piece, wrong, "was buried for another reason")
        figures.reasons.update(expected.values())
        dead.clear()

    def _judged(self, one: Hostile, now: datetime) -> str | None:
        """Return why a message must be dead-lettered, or None if it must be applied."""
        _, _, kind, chat, sender = one.subject.split(".")
        # Decode with the header that was sent; nats-py strips white space around its value.
        given = one.headers.get("Content-Type")
        found = decode(kind, chat, sender, one.body, content_type=given, now=now)
        if isinstance(found, Event):
            self._identities.add((chat, found.source, found.id))
            return None
        return str(found.reason)

    async def _ask(self, piece: list[Hostile], figures: Figures) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(one: Hostile) -> None:
            async with gate:
                try:
                    reply = await self.attacker.client.request(
                        one.subject, one.body, timeout=PATIENCE
                    )
                except TimeoutError:
                    self._blame(piece, {one.index}, "was never answered")
                    return
            figures.sent += 1
            code = int((reply.headers or {}).get("Nats-Service-Error-Code", 0))
            if code and code not in CODES:
                self._blame(piece, {one.index}, f"was answered {code}")
            figures.stored += 1
            if code:
                figures.reasons[str(code)] += 1

        await asyncio.gather(*map(ask, piece))

    def _blame(self, piece: list[Hostile], indexes: Iterable[int], words: str) -> None:
        wrong = [one for one in piece if one.index in set(indexes)]
        if not wrong:
            return
        files = [str(keep(one, self.seed)) for one in wrong[:5]]
        raise Harm(f"seed {self.seed}: {len(wrong)} {words}, such as {', '.join(files)}")

    async def _hear(self, letter: Msg) -> None:
        assert letter.headers is not None
        kind = letter.subject.rpartition(".")[2]
        number = json.loads(letter.headers["Workspaced-Headers"]).get("Fuzz")
        if number is None or kind not in self._dead:
            return
        async with self._changed:
            self._dead[kind][int(number)] = letter.headers["Workspaced-Reason"]
            self._changed.notify_all()

    async def _called(self, chat: Chat, tool: str, args: dict[str, object]) -> dict[str, object]:
        resolved = await chat.answer(await chat.ask(tool, args), PATIENCE)
        assert not resolved["is_error"], resolved
        return dict(resolved["result"])


def keep(one: Hostile, seed: int) -> Path:
    """Write a message to a file, so that every run sends it again."""
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{one.target}-{seed}-{one.index}.json"
    body = base64.b64encode(one.body).decode()
    kept = {"target": one.target, "subject": one.subject, "headers": one.headers, "body": body}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path


def kept() -> list[Hostile]:
    """Return the messages of those files."""
    found = []
    for number, path in enumerate(sorted(FOUND.glob("*.json"))):
        one = json.loads(path.read_text())
        headers = {**one["headers"], "Fuzz": str(-1 - number)} if one["headers"] else {}
        body = base64.b64decode(one["body"])
        found.append(Hostile(one["target"], -1 - number, one["subject"], body, headers))
    return found


@asynccontextmanager
async def fuzz_run_on(fleet: Fleet, seed: int) -> AsyncIterator[FuzzRun]:
    """Start a worker and a gateway, and connect all participants."""
    worker, gateway = await asyncio.gather(fleet.start("worker"), fleet.start("gateway"))
    template = await fleet.push("plain")
    rig = FuzzRun(
        fleet, template["template_id"], {"worker": worker.pid, "gateway": gateway.pid}, seed
    )
    operator = role_options(fleet.credentials, "operator")
    async with (
        connected(rig.attacker, fleet.nats_url, **operator),
        connected(rig.service, fleet.nats_url, **role_options(fleet.credentials, "chat-service")),
        connected(
            rig.provisioner, fleet.nats_url, **role_options(fleet.credentials, "provisioner")
        ),
    ):
        await rig.listen()
        building = asyncio.create_task(rig.provisioner.build_everything(rig.attacker))
        try:
            yield rig
        finally:
            await cancel_and_wait(building)
