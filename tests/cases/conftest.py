"""One `workspaced up` for all cases; each case gets its own participants."""

from tests.rigs.deployments import deployment, running, world

__all__ = ["deployment", "running", "world"]
