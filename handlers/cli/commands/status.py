"""`workspaced status`, `calls list` and `build times`: what runs, what waits, how long builds take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, cast

from bus import BusError, Denied, subjects
from handlers.app import Endpoints, WrongKey, errors_name_database, locate
from handlers.cli.client import connected, rpc_pages
from handlers.cli.command_table.operations import ListCalls, ShowBuildTimes, ShowStatus
from handlers.cli.output import (
    counted,
    duration,
    for_people,
    local_time,
    note,
    size,
    write_entries,
    write_fields,
    write_json,
    write_lines,
    write_table,
)
from handlers.inspection.messages import PoolStatus, StatusReply
from handlers.inspection.status import Inspection
from handlers.settings import Settings
from statemachine.store import StoreUnavailableError
from statemachine.store.postgres import connect as open_store
from statemachine.store.postgres import timeouts

ANSWER_WITHIN: Final = 15.0
"""Seconds that a gateway may take."""
_CALL_TITLES: Final = ("CHAT", "CALL", "TOOL", "SINCE", "STATE", "WAITS FOR", "LIMIT")
_TIMES_TITLES: Final = (
    *("TEMPLATE", "BUILD", "COUNT", "FAILED", "CANCELED"),
    *("MEDIAN", "90 %", "LONGEST", "QUEUED"),
)


async def show_status(command: ShowStatus, settings: Settings) -> int:
    """Print the status; return 1 if something is wrong. Raises NotFoundError, WrongKey."""
    status = await _status(locate(settings))
    if for_people(as_json=command.json):
        write_fields(list(_fields(status)))
        write_lines(list(_problem_lines(status)))
    else:
        write_json(cast("Mapping[str, Any]", status))
    return 1 if status["problems"] else 0


async def _status(endpoints: Endpoints) -> StatusReply:
    """Return the status, read here; without access to the database, read by a worker or a gateway."""
    async with AsyncExitStack() as stack:
        bus, nats_error, store, database_error = None, "", None, ""
        try:
            bus = await stack.enter_async_context(endpoints.bus("operator"))
        except WrongKey:
            raise
        except BusError as error:
            nats_error = str(error)
        url = endpoints.databases.get("operator", endpoints.database_url)
        if url is None and bus is not None:
            try:
                reply = await bus.request(subjects.rpc("status"), b"{}", timeout=ANSWER_WITHIN)
                return cast(StatusReply, json.loads(reply.data))
            except Denied:
                raise
            except (BusError, TimeoutError):
                database_error = "no --database-url is given, and no gateway answers"
        elif url is None:
            database_error = (
                "no --database-url is given, and NATS, over which a gateway would answer, is away"
            )
        else:
            try:
                with errors_name_database(url):
                    limits = timeouts(endpoints.transaction_timeout)
                    store = await stack.enter_async_context(open_store(url, limits=limits))
            except StoreUnavailableError as error:
                database_error = str(error)
        return await Inspection(store, bus, database_error, nats_error).run()


def _fields(status: StatusReply) -> Iterator[tuple[str, str]]:
    """Yield what runs and waits as names and values."""
    for server in status["servers"]:
        if not server["reachable"]:
            yield server["kind"], "not reachable"
            continue
        name = f"{server['name']}, " if server["name"] else ""
        version = server["version"] or "version not known"
        yield server["kind"], f"{name}{version}, since {local_time(server['started_at'])}"
    for kind, processes in (
        ("workers", [(one["name"], one) for one in status["workers"]]),
        ("gateways", [(one["id"], one) for one in status["gateways"]]),
    ):
        lines = [
            f"{name}, {one['version']}, since {local_time(one['started_at'])}"
            for name, one in cast("Sequence[tuple[str, Any]]", processes)
        ]
        yield kind, "\n".join(lines) or "none"
    yield "pools", "\n".join(map(_pool_line, status["pools"])) or "no template names one"
    waiting, dead = status["waiting_calls"], status["dead_letters"]
    if waiting is not None:
        oldest = (
            f", the oldest since {local_time(waiting['oldest_at'])}" if waiting["count"] else ""
        )
        yield "waiting calls", f"{waiting['count']}{oldest}"
    if dead is not None:
        newest = f", the newest of {local_time(dead['newest_at'])}" if dead["count"] else ""
        yield "dead letters", f"{dead['count']}{newest}"
    lines = []
    for stream in status["streams"]:
        most = stream["max_bytes"]
        room = "" if most is None else f" of {size(most)}"
        behind = sum(one["undelivered"] + one["unacked"] for one in stream["consumers"])
        lag = f"; workers have {behind} before them" if behind else ""
        lines.append(
            f"{stream['name']}: {counted(stream['messages'], 'message')}, {size(stream['bytes'])}{room}{lag}"
        )
    if lines:
        yield "streams", "\n".join(lines)


def _pool_line(pool: PoolStatus) -> str:
    if pool["served"] is None:
        return f"{pool['pool']}: not known"
    served = "served" if pool["served"] else "nobody serves it"
    oldest = f", the oldest since {local_time(pool['oldest_at'])}" if pool["oldest_at"] else ""
    waiting, running = counted(pool["waiting"] or 0, "build"), pool["running"] or 0
    return f"{pool['pool']}: {served}; {waiting} waiting{oldest}, {running} begun"


def _problem_lines(status: StatusReply) -> Iterator[str]:
    yield ""
    if not status["problems"]:
        yield "nothing is wrong"
    for problem in status["problems"]:
        yield f"{problem['where']}: {problem['what']}"
        yield f"  {problem['do']}"


async def list_calls(command: ListCalls, settings: Settings) -> None:
    """Print the calls that wait."""
    async with connected(locate(settings), "operator") as ws:
        calls = rpc_pages(ws, "list_calls", "calls", "cursor", chat_id=command.chat)
        await write_entries(
            calls, _CALL_TITLES, _call_row, none="no call waits", as_json=command.json
        )


def _call_row(call: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        call["chat_id"],
        call["call_id"],
        call["tool"],
        local_time(call["asked_at"]),
        call["state"],
        call["waits_for"],
        local_time(call["deadline"]),
    )


async def show_build_times(command: ShowBuildTimes, settings: Settings) -> None:
    """Print how long builds took."""
    async with connected(locate(settings), "operator") as ws:
        times = await ws.rpc("build_times", seconds=command.period)
    if not for_people(as_json=command.json):
        write_json(times)
        return
    if not times["templates"]:
        note(f"no build has ended since {local_time(times['since'])}")
        return
    write_table(_TIMES_TITLES, [_times_row(one) for one in times["templates"]])
    if not times["complete"]:
        note(
            f"more builds ended since {local_time(times['since'])}: these are the newest {times['builds']}"
        )


def _times_row(times: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        times["template"] or "(made elsewhere)",
        times["transition"],
        *(str(times[key]) for key in ("count", "failed", "canceled")),
        *(duration(times[key]) for key in ("median", "p90", "longest", "queued")),
    )
