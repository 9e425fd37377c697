"""Which calls of §9's tools were done in this workspace, so that each is done once, also over a stop and a start.

A call is noted before it is done, with a digest of its content, and its answer afterwards. The notes are those of
the workspace, not of one agent: they are in `.workspaced`, which outlives builds. SQLite writes each of them
completely or not at all, also when this process is killed. Notes of calls that a repetition could do a second time
also survive a loss of power.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bus import ServiceError
from handlers.agent.processes import MOST_ENDED, REMEMBERED_FOR
from handlers.publishing.atomic_files import sync_directory
from statemachine.exec_tools import ExecAnswer

_OF_A_PROCESS: Final = frozenset(("process_input", "process_signal"))
"""Calls that nobody can repeat after a loss of power, because their process is gone."""
_FORGET_EVERY: Final = 100
_CONFLICT: Final = 409

_SCHEMA: Final = """
create table if not exists calls (
    call_id text primary key,
    tool text not null,
    digest text not null,
    at real not null,
    answer text
) without rowid;
create index if not exists calls_by_tool on calls (tool = 'execute', at);
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Noted:
    """A call that was noted before; `answer` is None if nobody knows what became of it."""

    answer: ExecAnswer | None


class CallNotes:
    """The notes of one workspace."""

    def __init__(self, path: Path, kept: Callable[[], Iterable[str]] = tuple) -> None:
        """Open the notes. `kept` returns the ids of calls that must not be forgotten. Raises OSError."""
        self._path, self._kept = path, kept
        try:
            self._notes = _opened(path)
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: {error}") from error
        except sqlite3.DatabaseError as error:
            # A command in the workspace has overwritten it; an agent that can do nothing helps nobody.
            _log.error("the notes of calls in %s are unreadable and begin anew: %s", path, error)
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._notes = _opened(path)
        self._since_forgotten = 0

    def claim(self, call_id: str, tool: str, content: Mapping[str, Any]) -> Noted | None:
        """Note that a call is about to be done; return the note if it was noted before.

        Raises ServiceError 409 if that one had another content, and OSError if nothing can be noted.
        """
        digest = _digest(content)
        try:
            self._sync(each=tool not in _OF_A_PROCESS)
            with self._notes:
                added = self._notes.execute(
                    "insert into calls values (?, ?, ?, ?, null) on conflict do nothing",
                    (call_id, tool, digest, time.time()),
                )
            if added.rowcount:
                return None
            found = self._notes.execute(
                "select tool, digest, answer from calls where call_id = ?", (call_id,)
            ).fetchone()
        except sqlite3.Error as error:
            raise OSError(f"the call can't be noted: {error}") from error
        if found[:2] != (tool, digest):
            raise ServiceError(
                _CONFLICT,
                f"call_id {call_id!r} was used in this workspace with another tool or other arguments: use a new one",
            )
        return Noted(None if found[2] is None else json.loads(found[2]))

    def settle(self, call_id: str, answer: ExecAnswer) -> None:
        """Note the answer to a call that is done."""
        self._write(
            "update calls set answer = ?, at = ? where call_id = ?",
            (json.dumps(answer), time.time(), call_id),
        )
        self._since_forgotten += 1
        if self._since_forgotten >= _FORGET_EVERY:
            self._since_forgotten = 0
            self._forget()

    def withdraw(self, call_id: str) -> None:
        """Remove the note of a call that was not done after all."""
        self._write("delete from calls where call_id = ?", (call_id,))

    def close(self) -> None:
        """Close the notes."""
        self._notes.close()

    def _forget(self) -> None:
        """Forget old calls: those of `execute`, and the others, of which a terminal makes one for each key.

        A process may run for longer than that: its call is not forgotten before the process is.
        """
        kept = json.dumps([*self._kept()])
        for executes in (1, 0):
            self._write(
                "delete from calls where (tool = 'execute') = ?1 and (at < ?2 or at < (select min(at) from "
                "(select at from calls where (tool = 'execute') = ?1 order by at desc limit ?3))) "
                "and call_id not in (select value from json_each(?4))",
                (executes, time.time() - REMEMBERED_FOR, MOST_ENDED, kept),
            )

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            self._sync(each=False)
            with self._notes:
                self._notes.execute(statement, values)
        except sqlite3.Error as error:  # then nobody knows what became of the call
            _log.error("%s can't be written: %s", self._path, error)

    def _sync(self, *, each: bool) -> None:
        """Let the next transactions wait for the disk, or only those that move the journal into the file."""
        self._notes.execute(f"pragma synchronous = {'full' if each else 'normal'}")


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(0o600)
    sync_directory(path.parent)
    notes = sqlite3.connect(path)
    try:
        notes.execute("pragma journal_mode = wal")
        notes.executescript(_SCHEMA)
    except BaseException:
        with suppress(sqlite3.Error):
            notes.close()
        raise
    return notes


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
