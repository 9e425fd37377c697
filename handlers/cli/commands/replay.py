"""`workspaced replay`: whether logs add up, and the database beside them; snapshots made anew."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from handlers.app import limits, store_from_settings
from handlers.cli.commands.audit import Audit, audits, rebuild
from handlers.cli.commands.events import no_chat
from handlers.cli.output import Progress, counted, tell, write_lines
from handlers.settings import InvalidSettings, Settings
from statemachine.replay import Difference, Fold, chat_of
from statemachine.store.postgres import PostgresStore

_OPEN: Final = 1000
"""Chats of a file that are folded beside each other; in an export each stands in one piece."""


async def replay(flags: argparse.Namespace, settings: Settings) -> int:
    """Verify a file or a database, and rebuild it if asked to; return 1 when something differs.

    Raises InvalidSettings, NotFoundError.
    """
    if flags.file is not None:
        if flags.rebuild or flags.dry_run:
            raise InvalidSettings("--rebuild goes with --all or --chat: a file has no snapshots")
        return _replay_file(flags.file)
    if flags.dry_run and not flags.rebuild:
        raise InvalidSettings("--dry-run goes with --rebuild: without it nothing is written")
    async with store_from_settings(settings) as store:
        work = _Work(store, writes=flags.rebuild and not flags.dry_run, rebuilds=flags.rebuild)
        only = None if flags.all else [flags.chat]
        async for page in audits(store, limits(settings), only):
            await work.take(page)
            if only:
                _print_path(page[0].fold)
    if only and not work.chats:
        raise no_chat(flags.chat)
    return work.ended()


@dataclass(slots=True)
class _Work:
    """What was found so far, chat by chat."""

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
        """Tell what differs in a page of chats, and make anew what may be."""
        wrong = []
        for audit in page:
            self.chats += 1
            self.entries += audit.fold.entries
            of_log, of_snapshot = audit.of_log, audit.of_snapshot
            _tell(audit.kept.chat_id, [*of_log, *of_snapshot])
            if of_log:
                self.bad_logs += 1
            elif of_snapshot:
                wrong.append(audit)
            else:
                self.agree += 1
        if wrong and self.writes:
            self._told(await rebuild(self.store, wrong))
        self.progress.at(self.chats)

    def _told(self, rebuilt: dict[str, list[str]]) -> None:
        self.rebuilt += len(rebuilt)
        for chat_id, lost in rebuilt.items():
            self.lost += len(lost)
            for what in lost:
                tell(f"{chat_id}  the log hides {what}: it could not be restored")

    def ended(self) -> int:
        """Say what came of it; return the exit status."""
        differ = self.chats - self.agree
        words = _verdict(self.chats, self.entries, differ)
        if self.rebuilds and differ:
            would = "rebuilt" if self.writes else "would be rebuilt"
            count = self.rebuilt if self.writes else differ - self.bad_logs
            words += f", {count} {would}"
            if self.bad_logs:
                words += f", {self.bad_logs} can't be: their logs don't fold to what they recorded"
        tell(words)
        return 1 if differ > self.rebuilt or self.lost else 0


def _replay_file(file: str) -> int:
    """Fold a file's logs and print each chat's path; return 1 when one differs, or there is none."""
    folds: dict[str, Fold] = {}
    told = _Told()
    try:
        with _lines(file) as lines:
            for number, entry in _entries(lines):
                try:
                    chat_id = chat_of(entry)
                    fold = folds.pop(chat_id, None) or Fold(chat_id)
                    fold.take(entry)
                except ValueError as bad:
                    raise ValueError(f"line {number}: {bad}") from bad
                folds[chat_id] = fold  # the one spoken of last stands last
                if len(folds) > _OPEN:
                    told.take(folds.pop(next(iter(folds))))
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as bad:
        tell(f"workspaced: {file}: {getattr(bad, 'strerror', None) or bad}")
        return 1
    for fold in folds.values():
        told.take(fold)
    if not told.entries:
        tell(f"workspaced: no entries in {'stdin' if file == '-' else file}")
        return 1
    tell(_verdict(told.chats, told.entries, told.differ))
    return 1 if told.differ else 0


@dataclass(slots=True)
class _Told:
    """What was told of a file's chats."""

    chats: int = 0
    entries: int = 0
    differ: int = 0

    def take(self, fold: Fold) -> None:
        """Print a chat's path, and tell what differs."""
        _print_path(fold)
        _tell(fold.chat_id, fold.differences)
        self.chats += 1
        self.entries += fold.entries
        self.differ += bool(fold.differences)


def _verdict(chats: int, entries: int, differ: int) -> str:
    """Return what came of all of them."""
    words = f"{counted(chats, 'chat')}, {counted(entries, 'entry', 'entries')}: "
    return words + (f"{differ} differ" if differ else "all agree")


def _print_path(fold: Fold) -> None:
    write_lines([f"{fold.chat_id}  {' -> '.join(fold.path)}"])


def _tell(chat_id: str, differences: Sequence[Difference]) -> None:
    for difference in differences:
        tell(f"{chat_id}  {difference}")


@contextmanager
def _lines(file: str) -> Iterator[Iterable[str]]:
    if file == "-":
        if sys.stdin is None:
            raise ValueError("stdin is closed")
        yield sys.stdin
        return
    with Path(file).open(encoding="utf-8", newline="\n") as lines:
        yield lines


def _entries(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the lines of a log. Raises ValueError that names the line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as bad:
            raise ValueError(f"line {number} is not JSON: {bad}") from bad
        if not isinstance(entry, dict):
            raise ValueError(  # noqa: TRY004 — as bad as what is no JSON
                f"line {number} is no entry of an event log"
            )
        yield number, entry
