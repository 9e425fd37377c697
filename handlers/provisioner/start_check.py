"""What a provisioner finds when it starts: workspaces that have stopped or vanished, and directories of none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from handlers.errors import CannotServe
from handlers.provisioner.journal import BuildJournal, BuildRecord, LocalWorkspace
from handlers.publishing import new_event
from statemachine.events import Transition

_log = logging.getLogger(__name__)


class StartCheck:
    """Compares the directories of workspaces with the journal, once, before jobs are taken.

    The facts about what has changed are added to the journal. The provisioner publishes them with those of
    the newest builds, and so workers learn also of workspaces that they do not know.

    """

    def __init__(self, journal: BuildJournal, workspaces: Path, *, name: str, machine: str) -> None:
        self._journal, self._workspaces = journal, workspaces
        self._name, self._machine = name, machine

    def run(self) -> None:
        """Add facts about workspaces that have changed. Raises CannotServe if all directories are missing."""
        records = list(self._journal.records())
        expected = {record.workspace_id for record in records if record.has_directory}
        if expected and not self._workspaces.is_dir():
            raise CannotServe(
                f"{self._workspaces} is missing, where {len(expected)} workspaces should be: mount it, or create "
                "an empty directory if all of them are gone for good"
            )
        for record in records:
            newest = record.newest
            if newest is None or not newest.finished:
                continue  # its job comes again
            if record.has_directory and not (self._workspaces / record.workspace_id).is_dir():
                self._report_vanished(record, newest)
            elif record.runs and record.machine not in ("", self._machine):
                self._report_stopped(record)
        self._log_unknown({record.workspace_id for record in records})

    def _report_vanished(self, record: LocalWorkspace, newest: BuildRecord) -> None:
        _log.error("workspace %s is gone: its directory was deleted", record.workspace_id)
        data = {
            "workspace_id": record.workspace_id,
            "build_id": newest.build_id,
            "build_number": newest.number,
        }
        self._add(record, newest, "workspace_deleted", data)
        self._save(record)

    def _report_stopped(self, record: LocalWorkspace) -> None:
        """Report a stop made elsewhere: with the machine, all processes of the workspace have ended."""
        _log.warning(
            "workspace %s has stopped, because the machine was restarted", record.workspace_id
        )
        number = record.highest + 1
        build_id = str(uuid5(NAMESPACE_URL, f"workspaced:{record.workspace_id}:{number}"))
        build = record.add_build(build_id, number, Transition.STOP)
        data = {
            "workspace_id": record.workspace_id,
            "build_id": build_id,
            "build_number": number,
            "transition": Transition.STOP.value,
        }
        identity = {"workspace_name": record.name} if record.name else {}
        self._add(record, build, "build_started", {**data, **identity})
        self._add(record, build, "build_succeeded", {**data, "agents": []})
        build.finished = True
        self._save(record)

    def _add(
        self, record: LocalWorkspace, build: BuildRecord, type_name: str, data: Mapping[str, Any]
    ) -> None:
        build.facts.append(new_event("provisioner", self._name, record.chat_id, type_name, data))

    def _save(self, record: LocalWorkspace) -> None:
        record.agents = []
        try:
            self._journal.save(record)
        except OSError:  # it is reported again after the next start
            _log.exception("the journal of workspace %s can't be saved", record.workspace_id)

    def _log_unknown(self, known: set[str]) -> None:
        """Tell operators of directories that belong to no workspace of the journal."""
        try:
            names = {path.name for path in self._workspaces.iterdir() if path.name[0] != "."}
        except OSError:
            return
        if unknown := sorted(names - known):
            _log.warning(
                "%d directories in %s belong to no workspace that this provisioner knows; delete them if "
                "nobody needs them: %s",
                *(len(unknown), self._workspaces, ", ".join(unknown)),
            )
