"""`workspaced replay`: folds event logs again, compares, and rebuilds snapshots."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from handlers.app import limits, store_from_settings
from handlers.cli.client import unknown_chat
from handlers.cli.command_table.event_logs import Replay
from handlers.cli.commands.audit import Audit, audits, rebuild
from handlers.cli.output import Progress, counted, note, write_lines
from handlers.errors import InvalidSettings
from handlers.settings import Settings
from statemachine.replay import Difference, Fold, chat_of
from statemachine.store.postgres import PostgresStore

_OPEN: Final = 1000
"""Chats of a file that are folded at the same time; an export lists one chat after the other."""


async def replay(command: Replay, settings: Settings) -> int:
    """Check a file or a database, and rebuild snapshots if asked to; return 1 if something differs.

    Raises InvalidSettings, NotFoundError.
    """
    if command.file is not None:
        if command.rebuild or command.dry_run:
            raise InvalidSettings("--rebuild needs --all or --chat: a file has no snapshots")
        return _replay_file(command.file)
    if command.dry_run and not command.rebuild:
        raise InvalidSettings("--dry-run needs --rebuild: nothing else is written")
    async with store_from_settings(settings) as store:
        work = _DatabaseReplay(
            store, writes=command.rebuild and not command.dry_run, rebuilds=command.rebuild
        )
        only = None if command.chat is None else [command.chat]
        async for page in audits(store, limits(settings), only):
            await work.take(page)
            if only:
                _print_path(page[0].fold)
    if command.chat is not None and not work.chats:
        raise unknown_chat(command.chat)
    return work.finish()


@dataclass(slots=True)
class _DatabaseReplay:
    """Counts and reports what an audit of the database finds."""

    store: PostgresStore
    writes: bool
    rebuilds: bool
    chats: int = 0
    entries: int = 0
    agree: int = 0
    rebuilt: int = 0
    bad_logs: int = 0
    lost: int = 0
    progress: Progress = field(default_factory=lambda: Progress("{} chats"))

    async def take(self, page: Sequence[Audit]) -> None:
        """Report the differences in a page of chats, and rebuild the snapshots that can be rebuilt."""
        wrong = []
        for audit in page:
            self.chats += 1
            self.entries += audit.fold.entries
            of_log, of_snapshot = audit.of_log, audit.of_snapshot
            _report_differences(audit.kept.chat_id, [*of_log, *of_snapshot])
            if of_log:
                self.bad_logs += 1
            elif of_snapshot:
                wrong.append(audit)
            else:
                self.agree += 1
        if wrong and self.writes:
            self._report_rebuilt(await rebuild(self.store, wrong))
        self.progress.at(self.chats)

    def _report_rebuilt(self, rebuilt: dict[str, list[str]]) -> None:
        self.rebuilt += len(rebuilt)
        for chat_id, lost in rebuilt.items():
            self.lost += len(lost)
            for name in lost:
                note(f"{chat_id}  the log hides {name}: it could not be restored")

    def finish(self) -> int:
        """Print the totals; return the exit status."""
        differ = self.chats - self.agree
        total = _total(self.chats, self.entries, differ)
        if self.rebuilds and differ:
            would = "rebuilt" if self.writes else "would be rebuilt"
            count = self.rebuilt if self.writes else differ - self.bad_logs
            total += f", {count} {would}"
            if self.bad_logs:
                total += f", {self.bad_logs} can't be: their logs don't fold to what they recorded"
        note(total)
        return 1 if differ > self.rebuilt or self.lost else 0


def _replay_file(file: str) -> int:
    """Fold the logs of a file and print each chat's path; return 1 if one differs or there is none."""
    folds: dict[str, Fold] = {}
    report = _FileReport()
    try:
        with log_lines(file) as lines:
            for number, entry in log_entries(lines):
                try:
                    chat_id = chat_of(entry)
                    fold = folds.pop(chat_id, None) or Fold(chat_id)
                    fold.take(entry)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                folds[chat_id] = fold  # the most recent one is last
                if len(folds) > _OPEN:
                    report.take(folds.pop(next(iter(folds))))
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        note(f"workspaced: {file}: {getattr(error, 'strerror', None) or error}")
        return 1
    for fold in folds.values():
        report.take(fold)
    if not report.entries:
        note(f"workspaced: no entries in {'stdin' if file == '-' else file}")
        return 1
    note(_total(report.chats, report.entries, report.differ))
    return 1 if report.differ else 0


@dataclass(slots=True)
class _FileReport:
    """Counts and reports the chats of a file."""

    chats: int = 0
    entries: int = 0
    differ: int = 0

    def take(self, fold: Fold) -> None:
        """Print a chat's path, and report its differences."""
        _print_path(fold)
        _report_differences(fold.chat_id, fold.differences)
        self.chats += 1
        self.entries += fold.entries
        self.differ += bool(fold.differences)


def _total(chats: int, entries: int, differ: int) -> str:
    """Return the totals as text."""
    text = f"{counted(chats, 'chat')}, {counted(entries, 'entry', 'entries')}: "
    return text + (f"{differ} differ" if differ else "all agree")


def _print_path(fold: Fold) -> None:
    write_lines([f"{fold.chat_id}  {' -> '.join(fold.path)}"])


def _report_differences(chat_id: str, differences: Sequence[Difference]) -> None:
    for difference in differences:
        note(f"{chat_id}  {difference}")


@contextmanager
def log_lines(file: str) -> Iterator[Iterable[str]]:
    """Open a file of event logs, or stdin for `-`. Raises ValueError, OSError."""
    if file == "-":
        if sys.stdin is None:
            raise ValueError("stdin is closed")
        yield sys.stdin
        return
    with Path(file).open(encoding="utf-8", newline="\n") as lines:
        yield lines


def log_entries(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield numbered entries of a log. Raises ValueError that names the line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(  # noqa: TRY004 — as wrong as a line that is not JSON
                f"line {number} is not an entry of an event log"
            )
        yield number, entry
