"""`workspaced top`, driven without a terminal, and once on one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, RichLog, Static
from workspaced import Log, State

from handlers.cli.command_table.operations import ShowTop
from handlers.cli.commands import top_app
from handlers.cli.commands.top import top
from handlers.cli.commands.top_app import ChatScreen, TopApp
from handlers.errors import NotFoundError
from handlers.settings import Settings
from tests.cli.template_folders import QUICK, folder
from tests.cli.test_terminal import on_terminal
from tests.rigs.messages import new_id
from tests.rigs.processes import TIMEOUT, Up, run


def chat(name: str, state: str = "ready", version: int = 1, **more: Any) -> dict[str, Any]:
    chat_id = f"{name:0>8}-0000-4000-8000-000000000000"
    workspace = {"id": new_id(), "name": f"w-{name}", "owner_name": "me", "template_id": None}
    empty = {"build": None, "agent": None, "failure": None}
    return {
        "chat_id": chat_id,
        "version": version,
        "state": state,
        "workspace": workspace,
        **empty,
        **more,
    }


class Feed:
    """What the screen shows, and a chat that it opens."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.opened = asyncio.Queue[State | Log]()

    async def chats(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self.queue.get()

    async def follow(self, chat_id: str) -> AsyncIterator[State | Log]:
        del chat_id
        while True:
            yield await self.opened.get()

    def app(self) -> TopApp:
        return TopApp(self.chats, self.follow)


async def column(pilot: Pilot[None], number: int, wanted: list[str]) -> list[list[str]]:
    """Wait until a column shows these texts; return the rows."""
    app = pilot.app
    assert isinstance(app, TopApp)
    table = app.screen_stack[0].query_one(DataTable)
    async with asyncio.timeout(TIMEOUT):
        while True:
            app.drawn.clear()
            rows = [[cell.plain for cell in table.get_row_at(n)] for n in range(table.row_count)]
            if [row[number] for row in rows] == wanted:
                return rows
            await app.drawn.wait()


async def test_chats_are_shown_sorted_filtered_and_opened() -> None:
    feed = Feed()
    app = feed.app()
    async with app.run_test(size=(140, 30)) as pilot:
        failure = {"reason": "build_failed", "message": "[red]no disk[/red] \x1b[2Jleft"}
        for one in (chat("a"), chat("b", "failed", failure=failure), chat("c", "building")):
            feed.queue.put_nowait(one)
        rows = await column(pilot, 1, ["failed: build_failed", "building", "ready"])
        assert rows[0][6] == "[red]no disk[/red] left"

        feed.queue.put_nowait(chat("c", "ready", version=3))
        feed.queue.put_nowait(chat("c", "building", version=2))
        await column(pilot, 1, ["failed: build_failed", "ready", "ready"])

        await pilot.press("slash", *"w-b")
        await column(pilot, 2, ["me/w-b"])
        summary = app.query_one("#summary", Static)
        assert "1 of 3 chats" in str(summary.render())
        await pilot.press("escape")
        await column(pilot, 2, ["me/w-b", "me/w-a", "me/w-c"])
        await pilot.press("s")
        assert "sorted by newest" in str(summary.render())

        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, ChatScreen)
        feed.opened.put_nowait(Log(build_id=new_id(), output="hello [b]from\x1b[2J the build\n"))
        feed.opened.put_nowait(State(chat_id=new_id(), version=1, state="ready"))
        lines = app.screen.query_one(RichLog).lines
        while len(lines) < 2:
            await pilot.pause()
        shown = [line.text for line in lines]
        assert "hello [b]from the build" in shown[0]
        assert "ready" in shown[1]
        await pilot.press("escape")
        assert not isinstance(app.screen, ChatScreen)


async def test_many_changes_are_drawn_together() -> None:
    feed = Feed()
    app = feed.app()
    async with app.run_test() as pilot:
        for number in range(500):
            feed.queue.put_nowait(chat(str(number % 50), version=number))
        await column(pilot, 2, [f"me/w-{number}" for number in range(50)])
        assert app.drawings <= 3


def test_top_needs_a_terminal() -> None:
    done = run("top")

    assert done.returncode == 2
    assert "`top` needs a terminal" in done.stderr


@pytest.mark.parametrize("keys", ["q"])
def test_top_on_a_real_terminal(running: Up, tmp_path: Path, keys: str) -> None:
    text = QUICK.replace("quick", "topped")
    pushed = running.data("template", "push", folder(tmp_path, text))
    chat_id = new_id()
    with on_terminal(running, "top") as top:
        top.wait_for("chats, sorted by")
        running.data("create", pushed["template_id"], "--chat", chat_id, "--name", "shown-live")
        top.wait_for("shown-live")
        top.write(keys)
        assert top.end() == 0
    running.data("stop", chat_id)


async def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delitem(sys.modules, top_app.__name__)
    monkeypatch.setitem(sys.modules, "textual.app", None)  # as if it were not installed

    nothing = dict.fromkeys(name for name, _ in ShowTop.arguments())
    with pytest.raises(NotFoundError, match=r"pip install 'workspaced\[terminal\]'"):
        await top(ShowTop(nothing), Settings(data_dir=tmp_path))
