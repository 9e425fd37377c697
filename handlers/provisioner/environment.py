"""What build steps and scripts see: values reach them through the environment and in no other way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from handlers.provisioner.job import Job
from statemachine.local_template import AgentTable, variable_of, variable_text

_PASSED_ON: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR")
_DEFAULTS: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}


def of_job(job: Job, directory: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a build's steps; of our own only what any program needs."""
    passed = {name: ours[name] for name in _PASSED_ON if name in ours}
    parameters = {variable_of(name): value for name, value in job.parameters.items()}
    return {
        **_DEFAULTS,
        **passed,
        **parameters,
        "WORKSPACED_CHAT_ID": job.chat_id,
        "WORKSPACED_WORKSPACE_ID": job.workspace_id,
        "WORKSPACED_WORKSPACE_NAME": job.workspace_name,
        "WORKSPACED_WORKSPACE_DIRECTORY": str(directory),
        "WORKSPACED_BUILD_ID": job.build_id,
        "WORKSPACED_TRANSITION": job.transition.value,
        "WORKSPACED_OWNER_NAME": job.owner_name,
        "WORKSPACED_TEMPLATE_NAME": job.template.name,
    }


def of_agent(base: Mapping[str, str], spec: AgentTable, agent_id: str) -> dict[str, str]:
    """Return the environment of an agent's scripts; the template can't pass for workspaced."""
    own = {name: variable_text(value) for name, value in spec.env.items()}
    return {
        **base,
        **{name: value for name, value in own.items() if not name.startswith("WORKSPACED_")},
        "WORKSPACED_AGENT_ID": agent_id,
        "WORKSPACED_AGENT_NAME": spec.name,
    }


def is_plain(name: str) -> bool:
    """Tell whether a variable is one that any program may have, or workspaced's own."""
    return name in _PASSED_ON or name.startswith("WORKSPACED_")
