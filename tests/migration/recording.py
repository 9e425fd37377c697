"""Recordings of what a worker of each schema wrote, statement by statement. They never change.

`python -m tests.migration.recording` records the present schema as `data/NNNN.jsonl`, once, when
the migration is released. The first line contains the statements by name; each other line is one
execution, with the name and the arguments.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from statemachine.store.database import queries
from statemachine.store.migrator import migrations

DATA = Path(__file__).parent / "data"
Step = tuple[str, tuple[Any, ...]]


def recorded() -> list[int]:
    """Return the numbers of the schemas that have a recording."""
    return sorted(int(path.stem) for path in DATA.glob("*.jsonl"))


def read(number: int) -> list[Step]:
    """Return the statements of a recording with their arguments."""
    head, *lines = (DATA / f"{number:04d}.jsonl").read_text().splitlines()
    texts = json.loads(head)
    return [(texts[name], tuple(map(_back, args))) for name, args in map(json.loads, lines)]


async def run(db: asyncpg.Connection[Any], steps: list[Step]) -> None:
    """Execute the statements of a recording."""
    for text, args in steps:
        await db.fetch(text, *args)


def _back(value: Any) -> Any:
    if isinstance(value, list):
        return [_back(item) for item in value]
    if isinstance(value, dict):
        (kind, text), *_ = value.items()
        return datetime.fromisoformat(text) if kind == "time" else bytes.fromhex(text)
    return value


def _there(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise TypeError(f"an argument is {value!r}")


@contextmanager
def _recording(into: list[tuple[str, Any]]) -> Iterator[None]:
    names = {text: name for name, text in queries().items()}
    inner = asyncpg.Connection._execute

    async def run(self: Any, query: str, args: Any, *more: Any, **options: Any) -> Any:
        found = await inner(self, query, args, *more, **options)
        if query in names:
            into.append((names[query], _without_row_versions(names[query], args)))
        return found

    asyncpg.Connection._execute = run
    try:
        yield
    finally:
        asyncpg.Connection._execute = inner


def _without_row_versions(name: str, args: Any) -> Any:
    """Return the arguments of a statement for another database, where rows have other versions."""
    if name not in ("write", "write_facts"):
        return args
    chats, *others = args
    rows = [{**row, "row_version": None} for row in json.loads(chats)]  # null: in any case
    return [json.dumps(rows, ensure_ascii=False), *others]


async def record() -> None:
    """Run a worker through a short scenario, and store what it wrote."""
    found: list[tuple[str, Any]] = []
    async with _place() as (rig, hand):
        with _recording(found):
            await _story(rig, hand)
    used = {name: queries()[name] for name, _ in found}
    lines = [used, *found]
    file = DATA / f"{migrations()[-1].number:04d}.jsonl"
    text = "".join(json.dumps(line, default=_there, ensure_ascii=False) + "\n" for line in lines)
    file.write_text(text)
    sys.stderr.write(f"{file}: {len(found)} statements\n")


@asynccontextmanager
async def _place() -> AsyncIterator[Any]:
    from handlers.embedded import embedded_servers  # noqa: PLC0415
    from statemachine.store.migrator import migrate  # noqa: PLC0415
    from statemachine.store.postgres import connect  # noqa: PLC0415
    from tests.doubles.clock import VirtualClock  # noqa: PLC0415 — those who read a recording need no worker
    from tests.worker import rig as rigs  # noqa: PLC0415

    rigs.VirtualClock = lambda _: VirtualClock(time.time())  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as directory:
        async with embedded_servers(Path(directory)) as servers:
            await migrate(servers.database_url)
            async with connect(servers.database_url) as store:
                rig = await rigs.Rig().open()
                yield rig, rig.hand(store=store)


async def _story(rig: Any, hand: Any) -> None:
    """Create chats in every phase; the tests continue each of them."""
    from tests.rigs.messages import new_id  # noqa: PLC0415
    from tests.unit.driver import ORG, template  # noqa: PLC0415

    secretive = template(
        'name = "secretive"\n[[parameter]]\nname = "branch"\ndefault = "main"\n'
        '[[parameter]]\nname = "token"\nsensitive = true\nrequired = true\n[build]\nstart = "true"\n',
        version="secretive",
    )
    plain, send = template(), rig.senders
    for pushed in (plain, secretive):
        await hand.worker.store.templates.push(ORG, pushed.active, b"archive")

    async def ask(chat: str, tool: str, call: str, **args: Any) -> None:
        await send.ask(chat, tool, call, **args)
        await hand.pump()

    async def built(agents: tuple[str, ...] = ("main",)) -> None:
        job = rig.job
        await send.built(job, "started")
        await send.built(job, agents=agents)
        for how, sequence in (("connected", 1), ("starting", 2), ("ready", 3)):
            if agents and job["transition"] == "start":
                await send.agent(job, how, sequence)
        await hand.pump()

    async def created(**more: Any) -> str:
        chat = new_id()
        await ask(chat, "create_workspace", "create", **{"template_id": plain.id, **more})
        return chat

    stopped = await created(name="one")
    await built()
    for call, tool in enumerate(("stop", "start", "stop")):
        await ask(stopped, f"{tool}_workspace", f"{tool}-{call}")
        await built()
    values = {"branch": "next", "token": "s3cret"}
    await created(template_id=secretive.id, parameters=values)
    await built()
    replaced = await created(name="two")
    await built(())
    await ask(replaced, "create_workspace", "again", template_id=plain.id, name="three")
    failed = await created()
    await send.built(rig.job, "failed")
    await hand.pump()
    deleted = await created()
    await built()
    await send.delete(deleted)
    await hand.pump()
    await built()
    await send.cancel(failed, "comes-later")
    waiting = await created(name="four")
    await ask(waiting, "list_templates", "list")
    await ask(waiting, "stop_workspace", "waits")


if __name__ == "__main__":
    asyncio.run(record())
