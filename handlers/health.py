"""`GET /healthz` and `/readyz`: is the process alive, and can it do its work now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web
from aiohttp.web_request import BaseRequest

from bus import Bus, Unavailable
from handlers.http_limits import Limited
from handlers.listen import Certificate
from statemachine.store import Store, StoreUnavailableError

ANSWER_WITHIN: Final = 2.0
"""Seconds that a server may take to answer a check: who asks for our health has little patience."""
Check = Callable[[], Awaitable[str | None]]
"""Returns what is wrong, or None."""


class Unhealthy(Exception):
    """Health can't be served; the message says where and why."""


@asynccontextmanager
async def health_server(
    host: str,
    port: int | None,
    checks: Mapping[str, Check],
    certificate: Certificate | None = None,
) -> AsyncIterator[None]:
    """Serve health on `host:port`: 200 when every check is well, else 503 naming what is not.

    `checks` may change meanwhile. No port: nothing is served. Raises Unhealthy.
    """
    if port is None:
        yield
        return

    async def answer(request: BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.json_response({"status": "not allowed"}, status=405)
        if request.path == "/healthz":
            return web.json_response({"status": "alive"})
        if request.path == "/readyz":
            return await _readiness(checks)
        return web.json_response({"status": "not found"}, status=404)

    # Nobody needs a credential for this, so it tells nothing else, and not too often.
    runner = web.ServerRunner(Limited(answer))
    await runner.setup()
    try:
        context = None if certificate is None else certificate.context()
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as no:
            raise Unhealthy(f"health can't be served on {host}:{port}: {no.strerror}") from no
        yield
    finally:
        await runner.cleanup()


async def _readiness(checks: Mapping[str, Check]) -> web.StreamResponse:
    names = list(checks)
    found = await asyncio.gather(*(_within(checks[name]) for name in names))
    wrong = {name: problem for name, problem in zip(names, found, strict=True) if problem}
    body = {"status": "not ready", "problems": wrong} if wrong else {"status": "ready"}
    return web.json_response(body, status=503 if wrong else 200)


async def _within(check: Check) -> str | None:
    """Return what a check finds, or that it takes too long.

    A check that is canceled may take long to end, since the driver then asks the database to cancel.
    Nobody waits for that.
    """
    asked = asyncio.ensure_future(check())
    try:
        done, _ = await asyncio.wait((asked,), timeout=ANSWER_WITHIN)
    finally:
        asked.cancel()
    return asked.result() if done else f"no answer within {ANSWER_WITHIN:g} s"


def connected(buses: Mapping[str, Bus]) -> Check:
    """Check that NATS answers on each connection, named by its role."""

    async def check() -> str | None:
        found = await asyncio.gather(*map(_is_there, buses.values()))
        without = [role for role, there in zip(buses, found, strict=True) if not there]
        return f"not connected: {', '.join(without)}" if without else None

    return check


async def _is_there(bus: Bus) -> bool:
    try:
        # A connection whose other end is silent counts as one for half a minute.
        async with asyncio.timeout(ANSWER_WITHIN / 2):
            await bus.flush()
    except (Unavailable, TimeoutError):
        return False
    return True


def answers(store: Store) -> Check:
    """Check that the database takes changes."""

    async def check() -> str | None:
        try:
            await store.check()
        except StoreUnavailableError as bad:
            return str(bad)
        return None

    return check


def either(check: Check, noted: Callable[[], str | None]) -> Check:
    """Check what can be asked, and then what a role has noted at its work."""

    async def both() -> str | None:
        return await check() or noted()

    return both


def alive(tasks: Sequence[asyncio.Task[Any]]) -> Check:
    """Check that none of the roles has ended."""

    async def check() -> str | None:
        ended = sum(task.done() for task in tasks)
        return f"{ended} of {len(tasks)} roles have ended" if ended else None

    return check


def begun(ready: asyncio.Event) -> Check:
    """Check that a role has begun its work."""

    async def check() -> str | None:
        return None if ready.is_set() else "still starting"

    return check
