"""The screen of `workspaced top`: a table of chats, and the states and logs of one of them. Needs `textual`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import DataTable, Footer, Input, RichLog, Static
from typing_extensions import override
from workspaced import Log, State

from handlers.cli.commands.texts import ChangeDescriber, workspace_name
from handlers.cli.output import STATE_STYLES, local_time, one_line, plain

Chat = Mapping[str, Any]
DRAW_SECONDS: Final = 0.25
"""The shortest time between two drawings of the table."""
_TITLES: Final = ("CHAT", "STATE", "WORKSPACE", "BUILD", "SINCE", "AGENT", "NOTE")
_SORTS: Final = ("state", "newest", "workspace", "chat")
_ORDER: Final = (
    *("failed", "building", "agent_connecting", "scripts_running", "stopping"),
    *("ready", "stopped", "none"),
)
"""The order of the states in the table: operators look for failures first."""


class TopApp(App[None]):
    """Shows all chats as they change."""

    ENABLE_COMMAND_PALETTE = False
    CSS = (
        "Input { display: none; } Input.shown { display: block; } #summary { color: $text-muted; }"
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "all", "All", show=False),
    ]

    def __init__(
        self,
        chats: Callable[[], AsyncIterator[Chat]],
        follow: Callable[[str], AsyncIterator[State | Log]],
    ) -> None:
        """`chats` yields the data of states, first of all chats; `follow` the events of one chat."""
        super().__init__()
        self._source, self._follow = chats, follow
        self._chats: dict[str, Chat] = {}
        self._changed = set[str]()
        self._words = ""
        self._sort = _SORTS[0]
        self._drawing: Timer | None = None
        self.drawings = 0
        """How often the table was drawn."""
        self.drawn = asyncio.Event()
        """Set by each drawing."""

    @override
    def compose(self) -> ComposeResult:
        yield Static(id="summary", markup=False)
        yield Input(placeholder="words that a row has to contain")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to take chats."""
        self._table.add_columns(*((title, title) for title in _TITLES))
        self._table.focus()
        self.run_worker(self._take(), exit_on_error=True)
        self._draw_soon()

    @property
    def _table(self) -> DataTable[Text]:
        # On the main screen also while another one is shown.
        return self.screen_stack[0].query_one(DataTable)

    async def _take(self) -> None:
        async for chat in self._source():
            known = self._chats.get(chat["chat_id"])
            if known is not None and known["version"] > chat["version"]:
                continue
            self._chats[chat["chat_id"]] = chat
            self._changed.add(chat["chat_id"])
            self._draw_soon()

    def _draw_soon(self) -> None:
        if self._drawing is None:
            self._drawing = self.set_timer(DRAW_SECONDS, self._draw)

    def _draw(self) -> None:
        """Show the chats that have changed."""
        self._drawing = None
        self.drawings += 1
        table, changed = self._table, self._changed
        self._changed = set()
        for chat_id in changed:
            row = _row(self._chats[chat_id])
            wanted = self._words.lower() in " ".join(cell.plain for cell in row).lower()
            if chat_id in table.rows:
                if not wanted:
                    table.remove_row(chat_id)
                else:
                    for title, cell in zip(_TITLES, row, strict=True):
                        table.update_cell(chat_id, title, cell)
            elif wanted:
                table.add_row(*row, key=chat_id)
        self._sort_rows()
        self.drawn.set()

    def _sort_rows(self) -> None:
        table = self._table
        match self._sort:
            case "state":
                table.sort("STATE", "CHAT", key=lambda cells: (_rank(cells[0]), cells[1].plain))
            case "newest":
                table.sort("SINCE", key=lambda cell: cell.plain, reverse=True)
            case other:
                table.sort(other.upper(), key=lambda cell: cell.plain)
        shown = f"{table.row_count} of {len(self._chats)}" if self._words else str(len(self._chats))
        about = f", with {self._words!r}" if self._words else ""
        summary = self.screen_stack[0].query_one("#summary", Static)
        summary.update(f"{shown} chats{about}, sorted by {self._sort}")

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._sort = _SORTS[(_SORTS.index(self._sort) + 1) % len(_SORTS)]
        self._sort_rows()

    def action_filter(self) -> None:
        """Ask for words."""
        field = self.query_one(Input)
        field.add_class("shown")
        field.focus()

    def action_all(self) -> None:
        """Show all chats again."""
        field = self.query_one(Input)
        field.remove_class("shown")
        field.value = ""
        self._table.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show only the rows with these words."""
        self._words = event.value.strip()
        self._changed |= self._chats.keys()
        self._draw_soon()

    def on_input_submitted(self) -> None:
        """Go back to the table."""
        self._table.focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open a chat."""
        if event.row_key.value is not None:
            self.push_screen(ChatScreen(event.row_key.value, self._follow))


class ChatScreen(Screen[None]):
    """Follows one chat."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back"),
        Binding("q", "leave", "Back", show=False),
    ]

    def __init__(self, chat_id: str, follow: Callable[[str], AsyncIterator[State | Log]]) -> None:
        super().__init__()
        self._chat_id, self._follow = chat_id, follow

    @override
    def compose(self) -> ComposeResult:
        yield Static(f"chat {self._chat_id}", markup=False)
        yield RichLog(wrap=True, markup=False, highlight=False, max_lines=10_000)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow."""
        self.query_one(RichLog).focus()
        self.run_worker(self._show(), exit_on_error=True)

    async def _show(self) -> None:
        describer, lines = ChangeDescriber(), self.query_one(RichLog)
        async with aclosing(self._follow(self._chat_id)) as events:  # type: ignore[type-var]
            async for event in events:
                for line in describer.lines(event):
                    lines.write(Text(plain(line)))

    def action_leave(self) -> None:
        """Go back to the table."""
        self.app.pop_screen()


def _row(chat: Chat) -> tuple[Text, ...]:
    build, agent, failure = chat["build"], chat["agent"], chat["failure"]
    state = f"failed: {failure['reason']}" if failure else str(chat["state"])
    note = chat.get("notice") or (failure["message"] if failure else "")
    return (
        Text(chat["chat_id"]),
        Text(one_line(state), style=STATE_STYLES.get(chat["state"], "")),
        Text(one_line(workspace_name(chat))),
        Text("-" if build is None else f"{build['number']} {build['transition']}"),
        Text("-" if build is None else local_time(build["started_at"])),
        Text("-" if agent is None else one_line(f"{agent['name']} {agent['status']}")),
        Text(one_line(note) if note else ""),
    )


def _rank(state: Text) -> int:
    name = state.plain.partition(":")[0]
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)
