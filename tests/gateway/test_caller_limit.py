"""A caller that floods the gateway gets 429, and other callers are still served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from bus import Message, ServiceError
from handlers.access.issued_keys import REQUEST_INFO
from handlers.gateway.gateway import CallerLimit


def by_inbox(who: str) -> Message:
    return Message("workspaced.rpc.get_chat", who.encode(), {}, f"_INBOX_{who}.x.1")


def by_name(who: str) -> Message:
    """Return a request from another account, in which the server names the caller."""
    headers = {REQUEST_INFO: json.dumps({"user": who})}
    return Message("workspaced.rpc.get_chat", who.encode(), headers, "_R_.x.1")


@pytest.mark.parametrize("message", [by_inbox, by_name])
async def test_a_caller_at_its_limit_gets_429_and_others_are_answered(
    message: Callable[[str], Message],
) -> None:
    go = asyncio.Event()

    async def answer(asked: Message) -> bytes:
        await go.wait()
        return asked.data

    limit = CallerLimit(limit=2)
    respond = limit.apply(answer)

    def asked(who: str) -> asyncio.Task[bytes]:
        return asyncio.create_task(respond(message(who)))

    flood, other = [asked("flood") for _ in range(3)], asked("other")
    with pytest.raises(ServiceError) as refused:
        await flood[2]
    go.set()

    assert refused.value.code == 429
    assert [await task for task in (*flood[:2], other)] == [b"flood", b"flood", b"other"]
    assert await asked("flood") == b"flood"
    assert not limit._running


async def test_a_caller_of_the_own_account_is_identified_by_its_inbox() -> None:
    """Clients of the gateway's own account could set that header themselves."""
    limit, go = CallerLimit(limit=1), asyncio.Event()

    async def answer(asked: Message) -> bytes:
        await go.wait()
        return asked.data

    respond = limit.apply(answer)
    headers = [{REQUEST_INFO: json.dumps({"user": name})} for name in ("a", "b")]
    messages = [Message("workspaced.rpc.get_chat", b"", h, "_INBOX_flood.x.1") for h in headers]
    first, second = (asyncio.create_task(respond(message)) for message in messages)

    with pytest.raises(ServiceError):
        await second
    go.set()
    assert await first == b""
