"""`workspaced token`: issues, lists and revokes bearer tokens."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from workspaced import WorkspacedError

from handlers.app import locate
from handlers.cli.client import connected, rpc_pages
from handlers.cli.command_table.access import IssueToken, ListTokens, OpenPage, RevokeToken
from handlers.cli.output import for_people, note, write_json, write_lines
from handlers.settings import Settings

WRONG_USAGE: Final = 2
"""The exit status for flags that the gateway refuses."""
_FLAGS: Final = {
    "chat_ids": "--chat",
    "organization_id": "--organization",
    "owner_id": "--owner",
    "owner_name": "--owner-name",
    "exec": "--exec",
}
"""The flag that gives each field of the rpc's body."""


async def issue(command: IssueToken, settings: Settings) -> int:
    """Issue a token and print it. Raises BusError. Return 2 if the gateway refuses the flags."""
    try:
        async with connected(locate(settings), "operator") as ws:
            issued = await ws.rpc(
                "issue_token",
                role=command.role,
                chat_ids=command.chat or None,
                organization_id=command.organization,
                owner_id=command.owner,
                owner_name=command.owner_name,
                ttl_seconds=command.lifetime,
                exec=command.exec,
            )
    except WorkspacedError as error:
        if error.code is None:  # not the gateway's
            raise
        faults = re.split(r"; (?=body\.)", error.detail)
        note("workspaced: " + "; ".join(map(_in_flags, faults)))
        return WRONG_USAGE if error.code == HTTPStatus.BAD_REQUEST else 1
    write_json(issued)
    return 0


def _in_flags(fault: str) -> str:
    """Return a fault that the gateway found in the body of the rpc in terms of the flags."""
    if fault.startswith("body.ttl_seconds"):
        return (
            "--for: a token is valid for 1 second to 30 days, one of an operator for 7 days at most"
        )
    return re.sub(r"body\.([a-z_]+)[^ :]*", lambda found: _FLAGS.get(found[1], found[0]), fault)


async def open_page(command: OpenPage, settings: Settings) -> int:
    """Print a link to the page. Raises BusError. Return 1 if no address of a page is known."""
    async with connected(locate(settings), "operator") as ws:
        issued = await ws.rpc("issue_page_code", chat_ids=command.chat or None)
    if command.url is not None:
        issued["page"] = f"{command.url.rstrip('/')}/?code={issued['code']}"
    if "page" not in issued:
        note(
            "workspaced: the gateway that answered serves no page: start it with --http-port, or name one that does "
            "with --url"
        )
        return 1
    if for_people(as_json=command.json):
        write_lines([issued["page"]])
    else:
        write_json(issued)
    return 0


async def list_tokens(command: ListTokens, settings: Settings) -> None:
    """Print the valid tokens. Raises BusError."""
    del command
    async with connected(locate(settings), "operator") as ws:
        write_json({"tokens": [t async for t in rpc_pages(ws, "list_tokens", "tokens", "cursor")]})


async def revoke(command: RevokeToken, settings: Settings) -> int:
    """Revoke a token; return 1 if there is no such valid token. Raises BusError."""
    async with connected(locate(settings), "operator") as ws:
        revoked = await ws.rpc("revoke_token", id=command.id)
    if not revoked["revoked"]:
        note(
            f"workspaced: there is no valid token {command.id}: `workspaced token list` shows them"
        )
        return 1
    write_json(revoked)
    return 0
