"""The provisioner kit: write a function that builds one job; the kit does the rest of the contract.

`workspaced.provisioner` makes a provisioner of the function, and `run` or `main` runs it. It takes jobs,
keeps a journal, reports facts, and acknowledges a job when the end of its build is stored.
"""

from workspaced.provisioning.jobs import (
    AgentCredential,
    BuildFailed,
    Built,
    BuiltAgent,
    Job,
    QuotaExceeded,
)
from workspaced.provisioning.serving import CannotServe, Provisioner, provisioner
from workspaced.provisioning.templates import BadTemplate

__all__ = [
    "AgentCredential",
    "BadTemplate",
    "BuildFailed",
    "Built",
    "BuiltAgent",
    "CannotServe",
    "Job",
    "Provisioner",
    "QuotaExceeded",
    "provisioner",
]
