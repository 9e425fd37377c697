"""What a provisioner finds when it starts: workspaces that have stopped or vanished, and directories of none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from workspaced.provisioning.journal import Journal

from handlers.errors import CannotServe
from handlers.provisioner import workspaces_folder
from handlers.provisioner.journal import LocalWorkspace

_log = logging.getLogger(__name__)


class StartCheck:
    """Compares the directories of workspaces with the journal, once, before jobs are taken.

    The facts about what has changed are added to the journal. The provisioner publishes them with those of
    the newest builds, and so workers learn also of workspaces that they do not know.

    """

    def __init__(
        self, journal: Journal[LocalWorkspace], workspaces: Path, *, name: str, machine: str
    ) -> None:
        self._journal, self._workspaces = journal, workspaces
        self._name, self._machine = name, machine

    def run(self) -> list[str]:
        """Add facts about workspaces that have changed; return the ids of those that have vanished.

        Their processes may still run. Raises CannotServe if the disk with the directories is not mounted.

        """
        records = self._journal.workspaces()
        self._check_folder([record.workspace_id for record in records if record.exists])
        vanished = []
        for record in records:
            newest = record.newest
            if newest is None or not newest.finished:
                continue  # its job comes again
            if record.exists and not (self._workspaces / record.workspace_id).is_dir():
                _log.error("workspace %s is gone: its directory was deleted", record.workspace_id)
                record.vanish(self._name)
                self._save(record)
                vanished.append(record.workspace_id)
            elif record.runs and record.machine not in ("", self._machine):
                # With the machine, all processes of the workspace have ended.
                _log.warning(
                    "workspace %s has stopped, because the machine was restarted",
                    record.workspace_id,
                )
                record.stop_elsewhere(self._name)
                self._save(record)
        self._log_unknown({record.workspace_id for record in records})
        return vanished

    def _check_folder(self, expected: Sequence[str]) -> None:
        """Mark the folder at its first use; raise CannotServe if it can't be the one that holds the workspaces.

        Earlier versions made no marker: one of the directories shows as well that the folder is the right one.
        """
        found = any((self._workspaces / workspace_id).is_dir() for workspace_id in expected)
        if expected and not found and not workspaces_folder.is_there(self._workspaces):
            marker = self._workspaces / workspaces_folder.MARKER
            raise CannotServe(
                f"{workspaces_folder.missing(self._workspaces)}. Workspaces that should be there: {len(expected)}. "
                f"Mount it; or, if all of them are gone for good, create the file {marker}: then they are reported "
                "as deleted"
            )
        try:
            workspaces_folder.mark(self._workspaces)
        except OSError as error:
            raise CannotServe(f"{self._workspaces} can't be used for workspaces: {error}") from None

    def _save(self, record: LocalWorkspace) -> None:
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
