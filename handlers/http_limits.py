"""What keeps a listener for HTTP usable when somebody wants it not to be: limits, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

RATE: Final = 20.0
"""Requests a second that an address may go on asking."""
BURST: Final = 100
"""Requests that an address may ask at once."""
ADDRESSES: Final = 1024
"""Of how many addresses it is known how much they asked; the longest silent is forgotten."""
CONNECTIONS: Final = 256
"""Open connections of all addresses together."""
CONNECTIONS_PER_ADDRESS: Final = 64
LIFE: Final = 10.0
"""Seconds that a connection may last: for who sends nothing, or one byte at a time."""
LINE: Final = 2048
"""Bytes of a request's first line, and of each header."""

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


class Allowance:
    """What each address may still ask: a bucket that fills up again while it is silent."""

    def __init__(
        self,
        now: Callable[[], float],
        rate: float = RATE,
        burst: int = BURST,
        most: int = ADDRESSES,
    ) -> None:
        self._now, self._rate, self._burst, self._most = now, rate, burst, most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, address: str) -> bool:
        """Say whether the address may ask once more now."""
        now = self._now()
        left, since = self._left.pop(address, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self._rate)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left, now)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return allowed


class Limited(web.Server):
    """Serves `handler` to each address as much as it may ask, and 429 beyond that."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(
            self._serve,
            access_log=None,
            keepalive_timeout=LIFE,
            lingering_time=0,  # what comes behind a request is read by nobody
            max_line_size=LINE,
            max_field_size=LINE,
        )
        self._handler = handler
        self._allowance = Allowance(asyncio.get_running_loop().time)
        self._addresses: dict[RequestHandler, str] = {}
        self._ends: dict[RequestHandler, asyncio.TimerHandle] = {}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection, if there is room for one more of its address."""
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        address = self._addresses[handler] = str(peer[0]) if peer else ""
        of_address = sum(known == address for known in self._addresses.values())
        if len(self._addresses) > CONNECTIONS or of_address > CONNECTIONS_PER_ADDRESS:
            transport.abort()
        else:
            end = asyncio.get_running_loop().call_later(LIFE, transport.abort)
            self._ends[handler] = end

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        self._addresses.pop(handler, None)
        if (end := self._ends.pop(handler, None)) is not None:
            end.cancel()
        super().connection_lost(handler, exc)

    async def _serve(self, request: BaseRequest) -> web.StreamResponse:
        if self._allowance.take(request.remote or ""):
            return await self._handler(request)
        words = {"status": "too many requests"}
        refusal = web.json_response(words, status=429, headers={"Retry-After": "1"})
        refusal.force_close()
        return refusal
