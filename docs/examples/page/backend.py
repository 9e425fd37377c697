"""The server of the example page: it serves the page, and issues keys with the key of a chat service.

python backend.py nats://127.0.0.1:4222 ws://127.0.0.1:8443 chat-service.nk
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import workspaced
from aiohttp import web

PAGE = Path(__file__).parent
FILES = {"": "index.html", "page.css": "page.css", "page.js": "dist/page.js"}
FOLLOWS = web.AppKey("FOLLOWS", workspaced.Workspaced)
OPTIONS = web.AppKey("OPTIONS", argparse.Namespace)


def may_follow(request: web.Request, chat_id: str) -> bool:  # noqa: ARG001 — the example has no login
    """Return whether the sender of the request may see this chat. Replace this by your own login.

    The example permits every chat, but only to pages of its own address: not to foreign pages, nor to names
    that somebody points at it.
    """
    here = f"127.0.0.1:{request.app[OPTIONS].port}"
    return request.host == here and request.headers.get("Origin") == f"http://{here}"


async def issue_key(request: web.Request) -> web.Response:
    """Issue a key for one chat."""
    options, chat_id = request.app[OPTIONS], request.match_info["chat_id"]
    if not may_follow(request, chat_id):
        here = f"http://127.0.0.1:{options.port}/?chat={chat_id}"
        return web.Response(status=403, text=f"Only the page at {here} may ask for a key.")
    ttl = timedelta(seconds=options.ttl)
    try:
        key = await request.app[FOLLOWS].chat(chat_id).frontend_key(ttl, exec=options.exec)
    except workspaced.Unavailable:
        return web.Response(status=503, text="No gateway answers.")
    except workspaced.Invalid as error:
        return web.Response(status=400, text=str(error))
    left = datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
    more = {"servers": options.websocket.split(","), "seconds_left": left.total_seconds()}
    return web.json_response(key | more)


async def ask_gateway(request: web.Request) -> web.Response:
    """Say whether a gateway answers."""
    try:
        await request.app[FOLLOWS].rpc("get_chat", chat_id=str(uuid4()))
    except workspaced.Unavailable:
        return web.Response(status=503)
    return web.Response(status=204)


async def serve_file(request: web.Request) -> web.StreamResponse:
    """Serve a file of the page; what it may load is limited to itself and NATS."""
    file = FILES.get(request.match_info["file"])
    if file is None:
        raise web.HTTPNotFound
    nats = " ".join(
        f"{url.scheme}://{url.netloc}"
        for url in map(urlsplit, request.app[OPTIONS].websocket.split(","))
    )
    policy = f"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' {nats}"
    policy += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return web.FileResponse(PAGE / file, headers=headers)


async def connect(app: web.Application) -> AsyncIterator[None]:
    """Stay connected to workspaced while the server runs."""
    options = app[OPTIONS]
    async with workspaced.connect(options.nats, key=options.key, service="page") as app[FOLLOWS]:
        yield


def main() -> None:
    """Serve the page on this machine."""
    parser = argparse.ArgumentParser(description="Serve the example page on 127.0.0.1.")
    parser.add_argument("nats", help="URL of NATS: `nats` in the ready line of `workspaced up`")
    parser.add_argument("websocket", help="URL of its WebSocket: `websocket` in the ready line")
    parser.add_argument(
        "key", help="seed file of a chat service: <data-dir>/credentials/chat-service.nk"
    )
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument(
        "--ttl", type=float, default=600, help="seconds that a key is valid (default: 600)"
    )
    parser.add_argument(
        "--exec", action="store_true", help="also show commands; their output may hold secrets"
    )
    app = web.Application()
    app[OPTIONS] = parser.parse_args()
    app.cleanup_ctx.append(connect)
    app.router.add_post("/chats/{chat_id}/key", issue_key)
    app.router.add_get("/gateway", ask_gateway)
    app.router.add_get("/{file:[a-z.]*}", serve_file)
    web.run_app(app, host="127.0.0.1", port=app[OPTIONS].port)


if __name__ == "__main__":
    main()
