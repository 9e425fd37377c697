"""`workspaced dead`: lists, shows, replays and drops messages that could not be accepted.

These commands use NATS with an operator's key and need neither a gateway nor a worker.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, cast

from bus import Bus
from bus.streams import DEAD, IN
from handlers.app import locate
from handlers.cli.command_table.operations import DropDead, ListDead, ReplayDead, ShowDead
from handlers.cli.output import (
    counted,
    for_people,
    local_time,
    note,
    size,
    write_entries,
    write_fields,
    write_json,
)
from handlers.errors import InvalidSettings
from handlers.inspection.dead_letters import DeadLetters, original_headers, refusal
from handlers.settings import Settings

_TITLES: Final = ("NUMBER", "WHEN", "REASON", "SUBJECT", "DETAIL")
_KEPT_HEADER: Final = "Content-Type"
"""The only header of the sender that is published again: others would act in NATS, and none is needed."""


async def list_dead(command: ListDead, settings: Settings) -> None:
    """Print the dead letters."""
    async with locate(settings).bus("operator") as bus:
        await write_entries(
            _letters(bus), _TITLES, _row, none="no message was thrown away", as_json=command.json
        )


async def _letters(bus: Bus) -> AsyncIterator[Mapping[str, Any]]:
    page = await DeadLetters(bus).page(None)
    while True:
        for letter in page["letters"]:
            yield cast("Mapping[str, Any]", letter)
        if "next" not in page:
            return
        page = await DeadLetters(bus).page(page["next"])


def _row(letter: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(letter["sequence"]),
        local_time(letter["at"]),
        letter["reason"],
        letter["subject"],
        letter["detail"],
    )


async def show_dead(command: ShowDead, settings: Settings) -> int:
    """Print a dead letter; return 1 if there is none with that number."""
    async with locate(settings).bus("operator") as bus:
        letter = await DeadLetters(bus).read(command.letter)
    if letter is None:
        note(_unknown(command.letter))
        return 1
    if not for_people(as_json=command.json):
        write_json(cast("Mapping[str, Any]", letter))
        return 0
    replay = letter["refusal"]
    write_fields(
        [
            ("number", str(letter["sequence"])),
            ("when", local_time(letter["at"])),
            ("subject", letter["subject"]),
            ("sender", letter["sender"] or "not known"),
            ("reason", f"{letter['reason']}: {letter['detail']}"),
            ("what to do", letter["advice"]),
            ("replay", "possible" if replay is None else f"not possible: {replay}"),
            ("headers", "\n".join(f"{name}: {text}" for name, text in letter["headers"].items())),
            ("body", f"{size(letter['size'])}\n{letter['body']}"),
        ]
    )
    return 0


async def replay_dead(command: ReplayDead, settings: Settings) -> int:
    """Publish dead letters again; return 1 if one of them can't be."""
    status = 0
    async with locate(settings).bus("operator") as bus:
        for number in command.letters:
            status |= await _replay(bus, number)
    return status


async def _replay(bus: Bus, number: int) -> int:
    letter = await DeadLetters(bus).find(number)
    if letter is None:
        note(_unknown(number))
        return 1
    if (why := refusal(letter)) is not None:
        note(f"workspaced: dead letter {number} is not replayed: {why}")
        return 1
    subject, sent = letter.headers["Workspaced-Subject"], original_headers(letter)
    headers = {name: text for name, text in sent.items() if name.lower() == _KEPT_HEADER.lower()}
    # Without a message id: NATS would drop it if the first one came in the last two minutes.
    ack = await bus.publish(subject, letter.data, headers=headers)
    await bus.delete_message(DEAD.name, number)
    write_json(
        {"sequence": number, "subject": subject, "stream": ack.stream, "stored": ack.sequence}
    )
    note(
        f"dead letter {number} is published again as message {ack.sequence} of {IN.name}; if workers reject "
        "it again, it becomes a new dead letter in `workspaced dead list`"
    )
    return 0


async def drop_dead(command: DropDead, settings: Settings) -> int:
    """Delete dead letters; return 1 if one of them does not exist, or the answer is no."""
    if bool(command.letters) == command.all:
        raise InvalidSettings("name dead letters by their numbers, or give --all")
    async with locate(settings).bus("operator") as bus:
        letters = DeadLetters(bus)
        if command.all:
            numbers = [letter["sequence"] async for letter in _letters(bus)]
            missing = []
        else:
            found = {number: await letters.find(number) for number in command.letters}
            numbers = [number for number, letter in found.items() if letter is not None]
            missing = [number for number, letter in found.items() if letter is None]
        for number in missing:
            note(_unknown(number))
        if numbers and not (command.yes or _confirmed(len(numbers))):
            note("nothing was dropped")
            return 1
        for number in numbers:
            await bus.delete_message(DEAD.name, number)
            write_json({"sequence": number, "dropped": True})
    return 1 if missing else 0


def _confirmed(number: int) -> bool:
    if not sys.stdin.isatty():
        raise InvalidSettings("there is no terminal to ask on: give --yes to drop them")
    sys.stderr.write(f"drop {counted(number, 'dead letter')} for ever? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _unknown(number: int) -> str:
    return (
        f"workspaced: there is no dead letter {number}: it was dropped or replayed, or has expired; "
        "`workspaced dead list` shows all"
    )
