"""`workspaced credentials`: who else may come in, for how long, and no longer."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Final

from handlers.app import locate
from handlers.commands.printing import local_time, tell, write_json, write_listed
from handlers.commands.speaking import paged, rpc
from handlers.settings import Settings

TITLES: Final = ("PUBLIC KEY", "ROLE", "FOR", "ENDS", "CONNECTIONS")


async def issue(flags: argparse.Namespace, settings: Settings) -> int:
    """Have a key issued and print it; its seed is printed, or written to a file. Raises BusError."""
    file: Path | None = flags.out
    try:
        with _new(file) if file is not None else nullcontext() as seed_file:
            async with locate(settings).bus("operator") as bus:
                issued = await rpc(
                    bus,
                    "issue_credential",
                    role=flags.role,
                    chat_ids=flags.chat or None,
                    name=flags.name,
                    pool=flags.pool,
                    ttl_seconds=flags.lifetime,
                )
            if seed_file is not None:
                seed_file.write(issued.pop("seed"))
                issued["seed_file"] = str(file)
    except OSError as bad:
        tell(f"workspaced: the seed can't be written: {bad}")
        return 1
    write_json(issued)
    return 0


@contextmanager
def _new(file: Path) -> Iterator[IO[str]]:
    """Give a file that was not there, for its owner's eyes only; gone again when the block raises.

    Made before there is a key, so that no key is made in vain. No line end, as in all seed files.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as opened:
            yield opened
            opened.flush()
            os.fsync(descriptor)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


async def show(flags: argparse.Namespace, settings: Settings) -> None:
    """Print the keys that were issued, one a line."""
    async with locate(settings).bus("operator") as bus:
        keys = paged(bus, "list_credentials", "credentials", "cursor", spent=flags.all or None)
        none = "no keys were issued that are good now"
        await write_listed(keys, TITLES, _row, none, as_json=flags.json)


async def revoke(key: str, settings: Settings) -> None:
    """Take a key back. Raises BusError when there is no such key."""
    async with locate(settings).bus("operator") as bus:
        write_json(await rpc(bus, "revoke_credential", public_key=key))


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "revoked_at" in entry:
        ends = f"revoked {local_time(entry['revoked_at'])}"
    else:
        ends = local_time(entry["expires_at"])
    return (
        entry["public_key"],
        entry["role"],
        _whose(entry),
        ends,
        str(entry["connections"]),
    )


def _whose(entry: Mapping[str, Any]) -> str:
    if "agent_id" in entry:
        return f"agent {entry['agent_id']}"
    chats = entry.get("chat_ids", ())
    words = [
        entry.get("name", ""),
        f"pool {entry['pool']}" if "pool" in entry else "",
        f"chat {chats[0]}" if len(chats) == 1 else f"{len(chats)} chats" if chats else "",
    ]
    return ", ".join(filter(None, words))
