"""`workspaced credentials`: who else may come in, for how long, and no longer."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Final

from bus import ServiceError
from handlers.app import locate
from handlers.cli.client import paged, rpc
from handlers.cli.output import local_time, tell, write_json, write_listed
from handlers.gateway.credentials import LONGEST, SERVICES
from handlers.settings import Settings

TITLES: Final = ("PUBLIC KEY", "ROLE", "FOR", "ENDS", "CONNECTIONS")
_FLAGS: Final = {"chat_ids": "--chat", "name": "--name", "pool": "--pool", "ttl_seconds": "--for"}
"""What a field of the rpc's body is given by."""


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
        tell(f"workspaced: the seed can't be written to {file}: {_why(bad)}")
        return 1
    except ServiceError as no:
        faults = re.split(r"; (?=body\.)", no.description)
        tell("workspaced: " + "; ".join(_in_flags(fault, flags) for fault in faults))
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


async def revoke(key: str, settings: Settings) -> int:
    """Take a key back; return 0 when it was. Raises BusError."""
    try:
        async with locate(settings).bus("operator") as bus:
            write_json(await rpc(bus, "revoke_credential", public_key=key))
    except ServiceError as no:
        unknown = f"no key {key} was issued: `workspaced credentials list` shows those that were"
        tell(f"workspaced: {unknown if no.code in (400, 404) else no.description}")
        return 1
    return 0


def _why(bad: OSError) -> str:
    if isinstance(bad, FileExistsError):
        return "there is a file already: choose another name"
    return bad.strerror or str(bad)


def _in_flags(fault: str, flags: argparse.Namespace) -> str:
    """Say what the gateway found wrong with a body to whoever gave flags, and knows no body."""
    found = re.match(r"body\.([a-z_.,]+)[^ :]*:? (.*)", fault)
    fields = re.split(r"[.,]", found[1]) if found else [""]
    if found is None or fields[0] not in _FLAGS:
        return fault
    words, misspelled = found[2], "1 to 128 of" in found[2]
    flag, role = _FLAGS[fields[0]], flags.role
    match fields[0]:
        case "ttl_seconds":
            hours = LONGEST.get(role, SERVICES) / 3600
            words = f"a key for {role} is good for {hours / 24:g} days ({hours:g}h) at most"
        case "chat_ids" if role != "frontend":
            words = (
                f"a key for {role} is for all chats, only a frontend's is for some: leave it out"
            )
        case "chat_ids" if not flags.chat:
            words = "a frontend's key is for some chats: name each with --chat UUID"
        case "chat_ids":
            words = "a key is for 100 chats at most"
        case "name" if len(fields) > 1:
            flag, words = (
                "--pool, --name",
                "a provisioner's key is for one name and one pool: give both",
            )
        case "pool" if role != "provisioner" and not misspelled:
            words = f"only a provisioner's key is for a pool, not one for {role}: leave it out"
        case _ if misspelled:
            words = "letters, digits, - and _ only, 128 of them at most"
    return f"{flag}: {words}"


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "revoked_at" in entry:
        ends = f"revoked {local_time(entry['revoked_at'])}"
    elif "superseded" in entry:
        ends = "superseded"
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
