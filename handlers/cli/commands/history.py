"""`workspaced history`: the event log of a chat as a story, for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from handlers.app import locate
from handlers.cli.client import connected, read_events, unknown_chat
from handlers.cli.command_table.operations import ShowHistory
from handlers.cli.output import (
    duration,
    for_people,
    indented,
    one_line,
    write_json,
    write_lines,
)
from handlers.settings import Settings

LAST_LINES: Final = 8
"""The lines of an error that are shown."""
_NO_EFFECT: Final = {
    "repeat": "a repeat, without effect",
    "stale": "without effect: something newer is known",
    "foreign": "without effect: its sender may not report on this",
    "ignored": "without effect",
}
_SETTLED: Final = frozenset(("none", "ready", "failed", "stopped"))
Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to a chat, and what it led to."""

    at: str
    who: str
    what: str
    detail: str
    """More lines of text; may be empty."""
    state: str
    """The chat's state afterwards."""
    entered: bool
    """Whether the chat entered that state now."""
    previous_seconds: float | None
    """How long the chat was in the state before, if it left one that is a phase of a build."""
    outcome: str
    """The effect of the event, with the names of the event log: `moved`, `changed` and so on."""


async def show_history(command: ShowHistory, settings: Settings) -> None:
    """Print the history of a chat. Raises NotFoundError."""
    async with connected(locate(settings), "operator") as ws:
        entries = [entry async for entry in read_events(ws, command.chat)]
        chat = await ws.rpc("get_chat", chat_id=command.chat)
    if not entries:
        raise unknown_chat(command.chat)
    found = steps(entries)
    if not for_people(as_json=command.json):
        for step in found:
            write_json(asdict(step))
        return
    write_lines(list(_story(found, chat)))


def steps(entries: Iterable[Data]) -> list[Step]:
    """Return what happened, in the order of the log."""
    found: list[Step] = []
    entered_at: datetime | None = None
    for entry in entries:
        event, at = entry["event"], datetime.fromisoformat(entry["at"])
        before, after = entry["state_before"], entry["state_after"]
        entered = before != after
        lasted = None
        if entered:
            if entered_at is not None and before not in _SETTLED:
                lasted = (at - entered_at).total_seconds()
            entered_at = at
        what, detail = _words(event, entry)
        found.append(
            Step(
                entry["at"],
                _who(event["source"], event["data"]),
                what,
                detail,
                after,
                entered,
                lasted,
                entry["outcome"],
            )
        )
    return found


def _story(found: Sequence[Step], chat: Data) -> Iterator[str]:
    last_day = ""
    for step in found:
        if step.outcome == "repeat":
            continue  # senders repeat what they have said whenever they start again
        at = datetime.fromisoformat(step.at).astimezone()
        if (day := at.strftime("%A, %d %B %Y")) != last_day:
            yield from ([""] if last_day else [])
            yield day
            last_day = day
        yield f"{at.strftime('%H:%M:%S')}  {step.who} {step.what}"
        yield from indented(step.detail, f"{'':12}")
        if step.entered:
            lasted = step.previous_seconds
            after = "" if lasted is None else f", after {duration(lasted)}"
            yield f"{'':10}→ {step.state}{after}"
    yield ""
    yield from _now(found, chat)


def _now(found: Sequence[Step], chat: Data) -> Iterator[str]:
    entered = [step for step in found if step.entered]
    since = ""
    if entered:
        lasts = datetime.now(UTC) - datetime.fromisoformat(entered[-1].at)
        since = f" for {duration(lasts.total_seconds())}"
    yield f"now: {chat['state']}{since}"
    if (failure := chat["failure"]) is not None:
        yield from indented(_end(failure["message"]))
    if chat.get("notice"):
        yield from indented(chat["notice"])
    for call in chat["open_calls"]:
        asked = datetime.now(UTC) - datetime.fromisoformat(call["asked_at"])
        yield f"  {call['tool']} waits since {duration(asked.total_seconds())}"


def _who(source: str, data: Data) -> str:
    kind, _, name = source.removeprefix("/").partition("/")
    match kind:
        case "chat":
            return (
                f"{one_line(str(data['owner_name']))} ({name})" if data.get("owner_name") else name
            )
        case "provisioner":
            return f"provisioner {name}"
        case "agent":
            return f"agent {name[:8]}"
        case _:
            return "workspaced"


def _words(event: Data, entry: Data) -> tuple[str, str]:
    """Return what an event says, in words, and more lines."""
    name = event["type"].removeprefix("workspaced.").rpartition(".v")[0]
    data = event["data"]
    describe = _EVENTS.get(name)
    what, detail = (name.replace("_", " "), "") if describe is None else describe(data)
    if (no_effect := _NO_EFFECT.get(entry["outcome"])) is not None:
        what = f"{what} ({no_effect})"
    if entry.get("notice"):
        detail = f"{detail}\n{entry['notice']}".strip()
    return what, detail


def _asked(data: Data) -> tuple[str, str]:
    args = dict(data["args"])
    values = args.pop("parameters", None) or {}
    words = [f"{key} {value}" for key, value in args.items() if value not in (None, "")]
    words += [f"{key}={value}" for key, value in values.items()]
    return f"asked for {data['tool']}", one_line(", ".join(map(str, words))) if words else ""


def _requested(data: Data) -> tuple[str, str]:
    template = data.get("template") or {}
    of = f" of template {template['name']} in pool {template['pool']}" if template else ""
    return f"requested {data['transition']} build {data['build_number']}{of}", ""


def _build(verb: str) -> Callable[[Data], tuple[str, str]]:
    def words(data: Data) -> tuple[str, str]:
        code = f" ({data['error_code']})" if data.get("error_code") else ""
        text = f"{verb} {data['transition']} build {data['build_number']}{code}"
        return text, _end(data.get("error") or "")

    return words


def _end(text: str) -> str:
    """Return the last lines of an error, which usually say why."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(["…", *lines[-LAST_LINES:]] if len(lines) > LAST_LINES else lines)


def _exited(data: Data) -> tuple[str, str]:
    how = f"status {data['exit_code']}" if data.get("exit_code") is not None else data.get("signal")
    return f"reports that the agent has ended{f' ({how})' if how else ''}", _end(
        data.get("output") or ""
    )


def _plain(text: str, *more: str) -> Callable[[Data], tuple[str, str]]:
    """Return a description with a fixed text, and the values of the keys `more` that are set."""
    return lambda data: (text, "\n".join(str(data[key]) for key in more if data.get(key)))


_EVENTS: Final[Mapping[str, Callable[[Data], tuple[str, str]]]] = {
    "tool_requested": _asked,
    "tool_canceled": _plain("canceled a call"),
    "delete_requested": _plain("asked for the deletion of the workspace", "reason"),
    "keep_requested": lambda data: (f"asked to keep it for {duration(data['seconds'])}", ""),
    "build_cancel_requested": _plain("asked to cancel the build", "reason"),
    "build_requested": _requested,
    "build_started": _build("began"),
    "build_succeeded": _build("finished"),
    "build_failed": _build("failed at"),
    "build_canceled": _build("canceled"),
    "workspace_deleted": _plain("reports that the workspace is deleted"),
    "agent_exited": _exited,
    "agent_connected": _plain("is connected"),
    "agent_disconnected": _plain("is disconnected", "reason"),
    "agent_lifecycle": lambda data: (f"is {data['lifecycle'].replace('_', ' ')}", ""),
    "agent_activity": _plain("is used"),
    "deadline_passed": _plain("waited for as long as the limit permits"),
    "ttl_passed": _plain("ended the lifetime of the workspace"),
    "retention_passed": _plain("found that the workspace has rested for too long"),
    "retry_due": _plain("tries again what failed"),
    "wait_resumed": _plain("waits again for the build, for another call"),
    "workspace_used": _plain("put off the end of the lifetime, because a call used the workspace"),
    "build_overdue": _plain("found that the end of a replaced workspace takes too long"),
    "orphan_grace_passed": _plain("stops a workspace that belongs to no chat"),
    "fact_rejected": _plain("could not accept a fact", "fact", "detail"),
    "database_restored": _plain("found that the database was restored"),
}
"""Event -> its description."""
