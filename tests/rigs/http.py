"""A client of the HTTP interface, which knows only the contract."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

Answer = tuple[int, Any]


@dataclass(frozen=True)
class SseEvent:
    """One Server-Sent Event."""

    kind: str
    id: str
    data: Any


@dataclass
class HttpClient:
    """Sends requests with one token."""

    session: aiohttp.ClientSession
    url: str
    token: str | None = None

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """Return the status and the JSON of the answer. A problem must have the media type of problems."""
        sent = {"json": body} if body is not None else {"data": data}
        async with self.session.request(
            method, f"{self.url}{path}", headers=self._headers(headers), **sent
        ) as answer:
            content = json.loads(await answer.read() or b"null")
            if answer.status >= 400:
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert content["status"] == answer.status
                assert content["title"]
                assert content["detail"]
            return answer.status, content

    @asynccontextmanager
    async def stream(self, path: str, last_id: str = "") -> AsyncIterator[EventReader]:
        """Open a stream of Server-Sent Events."""
        headers = self._headers({"Last-Event-ID": last_id} if last_id else None)
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.get(
            f"{self.url}{path}", headers=headers, timeout=timeout
        ) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["Content-Type"] == "text/event-stream"
            yield EventReader(answer)

    def _headers(self, more: Mapping[str, str] | None) -> dict[str, str]:
        token = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        return {**token, **(more or {})}


@dataclass
class EventReader:
    """Reads the events of one stream."""

    answer: aiohttp.ClientResponse

    async def next(self, kind: str | None = None) -> SseEvent:
        """Return the next event, or the next one of that kind. Fails after 30 seconds."""
        async with asyncio.timeout(30):
            while True:
                event = await self._read()
                if kind is None or event.kind == kind:
                    return event

    async def state(self, state: str) -> SseEvent:
        """Return the next event that shows the chat in this state."""
        while True:
            event = await self.next("state")
            if event.data["data"]["state"] == state:
                return event

    async def _read(self) -> SseEvent:
        fields: dict[str, str] = {}
        async for raw in self.answer.content:
            line = raw.decode().rstrip("\n")
            if not line and fields:
                return SseEvent(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        raise AssertionError("the stream ended")


@asynccontextmanager
async def http_client(url: str, token: str | None = None) -> AsyncIterator[HttpClient]:
    """Open a client; `dataclasses.replace` gives it another token."""
    async with aiohttp.ClientSession() as session:
        yield HttpClient(session, url, token)
