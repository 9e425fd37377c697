"""The line below the notes of a command that waits: phase, elapsed time, its limit, and the last line of the log.

It is drawn only if stderr is a terminal, and `rich`, which draws it, is imported only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from workspaced import Log, State

from handlers.cli.output import duration, one_line, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

DRAWN_PER_SECOND: Final = 4
_PHASES: Final = {
    "building": "building",
    "agent_connecting": "waiting for the agent",
    "scripts_running": "startup scripts run",
    "stopping": "stopping",
}


@dataclass(slots=True)
class StatusLine:
    """The text of the status line, from the events of one chat."""

    text: str
    """The text until the chat enters a phase of a build, such as `waiting for stop_workspace`."""
    _state: State | None = None
    _since: datetime | None = None
    _last: str = ""
    """The last line of the log."""

    def heard(self, event: State | Log) -> None:
        """Take an event of the chat."""
        if isinstance(event, Log):
            lines = [line for line in plain(event.output).splitlines() if line.strip()]
            self._last = lines[-1].strip() if lines else self._last
            return
        if self._state is None or self._state.state != event.state:
            self._since, self._last = event.time, ""
        self._state = event

    def words(self, now: datetime) -> str:
        """Return the line as it is at a time."""
        state = self._state
        if state is None or state.settled:
            return plain(self.text) if state is None else f"{plain(self.text)}: {state.state}"
        queued = state.state == "building" and state.build is not None and not state.build.begun_at
        words = "queued" if queued else _PHASES.get(state.state, state.state)
        if self._since is not None:
            words += f"  {duration((now - self._since).total_seconds())}"
        if state.deadline is not None:
            left = (state.deadline - now).total_seconds()
            words += f", {duration(left)} left" if left > 0 else ", the limit has passed"
        return f"{words}  {one_line(self._last)}" if self._last else words


@contextmanager
def status_line(text: str, *, shown: bool, stdout: bool = False) -> Iterator[StatusLine]:
    """Draw a status line while the block runs, if stderr is a terminal and `shown`; yield it in any case.

    `stdout`: what the block writes to stdout goes to the same terminal, and has to appear above the line.
    """
    import sys  # noqa: PLC0415 — a test replaces its streams

    line = StatusLine(text)
    if not shown or not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console  # noqa: PLC0415 — only for terminals
    from rich.live import Live  # noqa: PLC0415

    with Live(
        _Drawn(line),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=stdout and sys.stdout.isatty(),
        refresh_per_second=DRAWN_PER_SECOND,
    ):
        yield line


class _Drawn:
    """The line as `rich` draws it, cut at the width of the terminal."""

    def __init__(self, line: StatusLine) -> None:
        from rich.spinner import Spinner  # noqa: PLC0415 — only for terminals

        self._line, self._spinner = line, Spinner("dots", style="dim")

    def __rich_console__(self, console: Any, options: Any) -> Iterator[RenderableType]:
        from rich.text import Text  # noqa: PLC0415 — only for terminals

        words = Text(self._line.words(datetime.now(UTC)), style="dim", no_wrap=True)
        words.truncate(max(1, options.max_width - 3), overflow="ellipsis")
        self._spinner.update(text=words)
        yield self._spinner.render(console.get_time())
