"""One `workspaced up` for the whole run, and the participants of the contract for each test."""

from tests.rigs.deployments import deployment, running, world

__all__ = ["deployment", "running", "world"]
