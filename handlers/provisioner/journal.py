"""The fields that the local provisioner's journal has for a workspace, beyond those of the kit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workspaced.provisioning.journal import Workspace

from handlers.sandbox.processes import machine_identity


@dataclass(slots=True)
class LocalWorkspace(Workspace):
    """A workspace that is a directory on this machine."""

    owner_id: str | None = None
    machine: str = ""
    """The machine, since it was started, on which the last start succeeded: `machine_identity`."""
    new: bool = False
    """No start build has succeeded and no directory existed before: nobody has worked in it yet."""

    @property
    def runs(self) -> bool:
        """Whether its newest build is a start that succeeded."""
        return self.newest is not None and self.newest.has_succeeded("start")

    def succeed(self, transition: str, agents: Sequence[str]) -> None:
        """Record that a build has succeeded, which made these agents."""
        Workspace.succeed(self, transition, agents)
        if transition == "start":
            self.new, self.machine = False, machine_identity()
