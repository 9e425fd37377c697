"""`workspaced credentials`: issues, lists and revokes keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final

from workspaced import WorkspacedError

from handlers.access.issued_keys import max_lifetime
from handlers.app import locate
from handlers.cli.client import connected, rpc_pages
from handlers.cli.command_table.access import IssueCredential, ListCredentials, RevokeCredential
from handlers.cli.output import local_time, note, write_entries, write_json
from handlers.settings import Settings

TITLES: Final = ("PUBLIC KEY", "ROLE", "FOR", "ENDS", "CONNECTIONS")
WRONG_USAGE: Final = 2
"""The exit status for flags that the gateway refuses."""
_BOUND_NAME: Final = re.compile(r"body\.name: .* belongs to a provisioner of pool ")
"""How the gateway refuses a name that was issued for another pool: the flags are right, the name is taken."""
_FLAGS: Final = {
    "chat_ids": "--chat",
    "name": "--name",
    "pool": "--pool",
    "ttl_seconds": "--for",
    "exec": "--exec",
}
"""The flag that gives each field of the rpc's body."""


async def issue(command: IssueCredential, settings: Settings) -> int:
    """Issue a key and print it; print its seed, or write it to a file. Raises BusError.

    Return 2 if the gateway refuses the flags, as the command line does for those that it can check itself,
    and 1 for every other refusal.
    """
    file = command.out
    try:
        with _create_private(file) if file is not None else nullcontext() as seed_file:
            async with connected(locate(settings), "operator") as ws:
                issued = await ws.rpc(
                    "issue_credential",
                    role=command.role,
                    chat_ids=command.chat or None,
                    name=command.label,
                    pool=command.pool,
                    ttl_seconds=command.lifetime,
                    exec=command.exec,
                )
            if seed_file is not None:
                seed_file.write(issued.pop("seed"))
                issued["seed_file"] = str(file)
    except OSError as error:
        note(f"workspaced: the seed can't be written to {file}: {_why(error)}")
        return 1
    except WorkspacedError as error:
        if error.code is None:  # not the gateway's
            raise
        faults = re.split(r"; (?=body\.)", error.detail)
        note("workspaced: " + "; ".join(_explain_fault(fault, command) for fault in faults))
        wrong_flags = error.code == HTTPStatus.BAD_REQUEST and not any(
            map(_BOUND_NAME.match, faults)
        )
        return WRONG_USAGE if wrong_flags else 1
    write_json(issued)
    return 0


@contextmanager
def _create_private(file: Path) -> Iterator[IO[str]]:
    """Create a file that only its owner may read, and delete it if the block raises.

    Create it before the key is issued, so that no key is issued whose seed cannot be stored.
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


async def list_credentials(command: ListCredentials, settings: Settings) -> None:
    """Print the issued keys."""
    async with connected(locate(settings), "operator") as ws:
        keys = rpc_pages(ws, "list_credentials", "credentials", "cursor", spent=command.all or None)
        none = "no issued key is valid now"
        await write_entries(keys, TITLES, _row, none=none, as_json=command.json)


async def revoke(command: RevokeCredential, settings: Settings) -> int:
    """Revoke a key; return 1 if it was never issued. Raises BusError."""
    key = command.key
    try:
        async with connected(locate(settings), "operator") as ws:
            write_json(await ws.rpc("revoke_credential", public_key=key))
    except WorkspacedError as error:
        if error.code is None:  # not the gateway's
            raise
        unknown = f"no key {key} was issued: `workspaced credentials list` shows those that were"
        note(f"workspaced: {unknown if error.code in (400, 404) else error.detail}")
        return 1
    return 0


def _why(error: OSError) -> str:
    if isinstance(error, FileExistsError):
        return "the file exists already: choose another name"
    return error.strerror or str(error)


def _explain_fault(fault: str, command: IssueCredential) -> str:
    """Return a fault that the gateway found in the body of the rpc in terms of the flags."""
    found = re.match(r"body\.([a-z_.,]+)[^ :]*:? (.*)", fault)
    fields = re.split(r"[.,]", found[1]) if found else [""]
    if found is None or fields[0] not in _FLAGS:
        return fault
    message, misspelled = found[2], "1 to 128 of" in found[2]
    flag, role = _FLAGS[fields[0]], command.role
    match fields[0]:
        case "ttl_seconds":
            hours = max_lifetime(role) / 3600
            message = f"a key for {role} is valid for {hours / 24:g} days ({hours:g}h) at most"
        case "chat_ids" if role != "frontend":
            message = f"a key for {role} is valid for all chats: leave it out; only a frontend's key is limited to some"
        case "chat_ids" if not command.chat:
            message = "a frontend's key is limited to some chats: name each with --chat UUID"
        case "chat_ids":
            message = "a key is limited to 100 chats at most"
        case "name" if len(fields) > 1:
            flag, message = (
                "--pool, --name",
                "a provisioner's key is bound to one name and one pool: give both",
            )
        case "pool" if role != "provisioner" and not misspelled:
            message = (
                f"only a provisioner's key is bound to a pool, not one for {role}: leave it out"
            )
        case _ if misspelled:
            message = "use letters, digits, - and _, 128 characters at most"
    return f"{flag}: {message}"


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
        _holder(entry),
        ends,
        str(entry["connections"]),
    )


def _holder(entry: Mapping[str, Any]) -> str:
    if "agent_id" in entry:
        return f"agent {entry['agent_id']}"
    chats = entry.get("chat_ids", ())
    parts = [
        entry.get("name", ""),
        f"pool {entry['pool']}" if "pool" in entry else "",
        f"chat {chats[0]}" if len(chats) == 1 else f"{len(chats)} chats" if chats else "",
    ]
    return ", ".join(filter(None, parts))
