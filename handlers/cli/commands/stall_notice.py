"""What holds a build up, said to who waits for it and hears nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from bus import Bus, BusError
from handlers.cli.client import rpc

QUIET: Final = 3.0
"""Seconds without a word after which it is looked, once, whether anybody has begun."""
_HELD_UP: Final = ("building", "stopping")


@asynccontextmanager
async def noticing(
    bus: Bus, chat_id: str, words: Callable[[str], object]
) -> AsyncIterator[Callable[[Mapping[str, Any]], None]]:
    """Give what must be called with each message heard of the chat; silence has `words` said."""
    loop = asyncio.get_running_loop()
    looking: list[asyncio.Task[None]] = []

    async def say() -> None:
        with suppress(BusError, TimeoutError):  # it is a courtesy
            chat = await rpc(bus, "get_chat", chat_id=chat_id)
            if "notice" in chat:
                words(f"  {chat['notice']}")

    def look() -> None:
        looking.append(loop.create_task(say()))

    timer = loop.call_later(QUIET, look)

    def heard(envelope: Mapping[str, Any]) -> None:
        nonlocal timer
        timer.cancel()
        if envelope["data"].get("state") in _HELD_UP:
            timer = loop.call_later(QUIET, look)

    try:
        yield heard
    finally:
        timer.cancel()
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
