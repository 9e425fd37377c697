"""The health server limits clients that send too much, too slowly, or other requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import pytest
from aiohttp import web
from aiohttp.web_request import BaseRequest

from handlers.runtime import health
from handlers.runtime.health import CONNECTIONS_PER_ADDRESS, Api, http_server
from handlers.runtime.rate_limit import ADDRESSES, BURST, RateLimiter

HERE, OTHER = "127.0.0.1", "127.0.0.2"


@asynccontextmanager
async def serving(api: Api | None = None, *, starting: bool = False) -> AsyncIterator[int]:
    """Run a server that reports no problem; yield its port. `starting`: its interface for clients does not exist yet."""
    with socket.create_server((HERE, 0)) as free:
        port = int(free.getsockname()[1])
    async with http_server(HERE, port, {}, for_clients=starting or api is not None) as server:
        server.api = api
        yield port


async def asked(port: int, request: bytes, address: str = HERE) -> bytes:
    """Send a request from that address; return everything received until the server closes."""
    reader, writer = await asyncio.open_connection(HERE, port, local_addr=(address, 0))
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def get(path: str, *headers: str) -> bytes:
    lines = (f"GET {path} HTTP/1.1", "Host: here", "Connection: close", *headers, "", "")
    return "\r\n".join(lines).encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.fixture
def clock_of_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock by which clients regain requests, because a slow machine would give them some meanwhile."""
    monkeypatch.setattr(health, "RateLimiter", lambda _now: RateLimiter(lambda: 0.0))


@pytest.mark.usefixtures("clock_of_limits")
async def test_requests_with_a_valid_token_are_not_counted_and_others_are() -> None:
    async def api(request: BaseRequest, trust: Callable[[BaseRequest], None]) -> web.Response:
        if request.path == "/known":
            trust(request)
        return web.Response()

    async with serving(api) as port:
        known = [status(await asked(port, get("/known"))) for _ in range(BURST + 20)]
        unknown = [await asked(port, get("/unknown")) for _ in range(BURST + 20)]

    assert known == [200] * (BURST + 20)
    assert [status(answer) for answer in unknown[:BURST]] == [200] * BURST
    assert status(unknown[-1]) == 429
    assert b"Content-Type: application/problem+json\r\n" in unknown[-1]
    assert b"without a valid token" in unknown[-1]


@pytest.mark.usefixtures("clock_of_limits")
async def test_one_address_gets_429_beyond_its_rate_and_others_are_served() -> None:
    async with serving() as port:
        flood = [status(await asked(port, get("/healthz"))) for _ in range(BURST + 20)]
        other = await asked(port, get("/readyz"), OTHER)

    assert set(flood) == {200, 429}
    assert flood[:BURST] == [200] * BURST
    assert status(other) == 200


async def test_clients_are_told_to_try_again_while_the_gateway_starts() -> None:
    async with serving(starting=True) as port:
        alive = await asked(port, get("/healthz"))
        early = await asked(port, get("/v1/chats"))

    assert status(alive) == 200
    assert status(early) == 503
    assert b"application/problem+json" in early
    assert b"Retry-After: 1\r\n" in early
    assert b"the gateway is starting; try again in a second" in early


async def test_other_paths_and_methods_are_refused() -> None:
    async with serving() as port:
        found = [status(await asked(port, get(path))) for path in ("/", "/metrics", "/healthz/x")]
        wrong = await asked(port, get("/healthz").replace(b"GET", b"POST"))

    assert found == [404, 404, 404]
    assert status(wrong) == 405


@pytest.mark.parametrize(
    "request_of_size",
    [
        lambda size: get("/" + "x" * size),
        lambda size: get("/healthz", "X-Long: " + "x" * size),
        lambda size: get("/healthz", *(f"X-{i}: {'x' * 1000}" for i in range(size // 1000))),
    ],
    ids=["line", "header", "headers"],
)
async def test_a_request_that_is_too_long_is_refused(
    request_of_size: Callable[[int], bytes],
) -> None:
    async with serving() as port:
        answer = await asked(port, request_of_size(1_000_000))
        after = await asked(port, get("/healthz"))

    assert not answer or status(answer) in (400, 431)
    assert status(after) == 200


async def test_a_connection_whose_request_never_ends_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "LIFE", 0.2)
    async with serving() as port:
        assert await asked(port, b"GET /healthz HTTP/1.1\r\nX-Slow: ") == b""


async def test_connections_of_one_address_are_limited() -> None:
    async with serving() as port:
        held = [
            await asyncio.open_connection(HERE, port, local_addr=(HERE, 0))
            for _ in range(CONNECTIONS_PER_ADDRESS)
        ]
        one_more = await asked(port, get("/healthz"))
        other = await asked(port, get("/healthz"), OTHER)
        for _, writer in held:
            writer.close()

    assert one_more == b""
    assert status(other) == 200


def test_the_rate_limit_recovers_with_time() -> None:
    clock = iter((0.0,) * 3 + (1.0,) * 3)
    allowance = RateLimiter(lambda: next(clock), rate=2, burst=2)

    assert [allowance.take("a") for _ in range(6)] == [True, True, False, True, True, False]


def test_the_number_of_counted_addresses_is_limited() -> None:
    ticks = count()
    allowance = RateLimiter(lambda: next(ticks) / 1000)

    for number in range(10 * ADDRESSES):
        allowance.take(str(number))

    assert len(allowance) == ADDRESSES
