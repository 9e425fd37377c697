"""One chat as an outside program sees it: through rpcs and direct get."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.rigs.client import Participant, ServiceError
from tests.rigs.messages import Event
from tests.rigs.reliable_client import AWAY, BACK_OFF

UNAVAILABLE = 503

SETTLED = ("ready", "failed", "stopped", "none")


@dataclass
class ChatView:
    """One chat as an outside program sees it."""

    chat: Event
    last: Event | None
    log: list[Event]

    @property
    def published(self) -> bool:
        """Whether the last published state is the state in the database."""
        chat = {key: value for key, value in self.chat.items() if key != "open_calls"}
        return self.last == chat or (self.last is None and chat["version"] == 0)

    @property
    def versions(self) -> list[int]:
        return [entry["version"] for entry in self.log if entry["version"] is not None]

    @property
    def at_rest(self) -> bool:
        known = self.versions[-1:] == [self.chat["version"]] or not self.chat["version"]
        return (
            self.chat["state"] in SETTLED
            and not self.chat["open_calls"]
            and not self.awaits_delete
            and self.published
            and known
        )

    @property
    def awaits_delete(self) -> bool:
        """Whether a delete has failed, so that workers request another one after a time."""
        build = self.chat["build"]
        return (
            self.chat["state"] == "failed" and build is not None and build["transition"] == "delete"
        )

    def events(self, *names: str) -> list[Event]:
        types = {f"workspaced.{name}.v1" for name in names}
        return [e["event"] for e in self.log if e["event"]["type"] in types]

    @property
    def builds(self) -> dict[str, Event]:
        """Data of every requested build, by build id."""
        return {e["data"]["build_id"]: e["data"] for e in self.events("build_requested")}

    def superseded(self, build_id: str) -> bool:
        """Return whether a later build of the same workspace was requested."""
        this = self.builds[build_id]
        return any(
            other["workspace_id"] == this["workspace_id"]
            and other["build_number"] > this["build_number"]
            for other in self.builds.values()
        )

    def ended(self) -> Iterator[tuple[str, bool]]:
        """Yield workspaces whose last successful build is no start, and whether it is a delete."""
        newest: dict[str, Event] = {}
        for event in self.events("build_succeeded"):
            data = event["data"]
            last = newest.get(data["workspace_id"], data)
            if data["build_number"] >= last["build_number"]:
                newest[data["workspace_id"]] = data
        for workspace_id, data in newest.items():
            if data["transition"] != "start":
                yield workspace_id, data["transition"] == "delete"


async def look_at(operator: Participant, chat_id: str, patience: float) -> ChatView:
    """Read the chat repeatedly until it is at rest: late facts of an agent may still change it."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while True:
        seen = await _look(operator, chat_id)
        if seen.at_rest or loop.time() > until:
            return seen
        await asyncio.sleep(BACK_OFF)  # back-off


async def _look(operator: Participant, chat_id: str) -> ChatView:
    chat = await _rpc(operator, "get_chat", chat_id=chat_id)
    log: list[Event] = []
    after = 0
    while True:
        page = await _rpc(operator, "read_events", chat_id=chat_id, after=after)
        log += page["events"]
        if "next" not in page:
            break
        after = page["next"]
    return ChatView(chat, await operator.last_state(chat_id), log)


async def _rpc(operator: Participant, name: str, **body: Any) -> Any:
    """Call an rpc; retry while a gateway or database that was just killed is still starting."""
    for _ in range(60):
        try:
            return await operator.rpc(name, **body)
        except (*AWAY, ServiceError) as error:
            if isinstance(error, ServiceError) and error.code != UNAVAILABLE:
                raise
            await asyncio.sleep(BACK_OFF)  # back-off
    return await operator.rpc(name, **body)
