"""One step of a build: its environment, and running its shell command within a time limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, StringConstraints, ValidationError
from workspaced.provisioning.jobs import BuildFailed

from handlers.provisioner.job import Job
from handlers.publishing.agent_files import OWN_FOLDER
from handlers.publishing.atomic_files import ensure_directory, read_regular_file
from handlers.publishing.build_log import BuildLog
from handlers.sandbox.shell import Shell, command_fault, describe_status
from statemachine.events import Quota
from statemachine.local_template import AgentTable, variable_of, variable_text
from statemachine.mask import Mask

LIMIT: Final = 3600.0
"""Seconds that a step may take. It may still succeed after the chat's own limit."""
_ERROR_FILE: Final = "error.json"
_ERROR_SIZE: Final = 65_536


@dataclass(frozen=True, slots=True)
class Failed:
    """A build has failed, and why."""

    error: str
    error_code: str | None = None
    quota: Mapping[str, float] | None = None

    def failure(self) -> BuildFailed:
        """Return what workers learn of it."""
        return BuildFailed(self.error, error_code=self.error_code, quota=self.quota)


class _StepError(BaseModel):
    """The content that a step may write to `$WORKSPACED_ERROR_FILE`."""

    error: Annotated[str, StringConstraints(min_length=1, max_length=_ERROR_SIZE)]
    error_code: Annotated[str, StringConstraints(max_length=128)] | None = None
    quota: Quota | None = None


async def run_step(
    name: str,
    command: str,
    *,
    workspace: Path,
    env: Mapping[str, str],
    log: BuildLog,
    limit: float = LIMIT,
    prefix: Sequence[str] = (),
) -> Failed | None:
    """Run a step; return Failed if it failed. If cancelled, it leaves no process of its group behind.

    `limit`: seconds. `prefix`: the words of a confinement. The log's mask must be set.

    """
    if fault := command_fault(command):
        return Failed(f"The {name} step could not be started: {fault}")
    error_file = workspace / OWN_FOLDER / _ERROR_FILE
    error_file.unlink(missing_ok=True)
    output = log.stream(name)
    env = {**env, "WORKSPACED_ERROR_FILE": str(error_file)}
    try:
        shell = Shell(command, cwd=workspace, env=env, output=output.feed, prefix=prefix)
    except (OSError, ValueError) as error:
        return Failed(f"The {name} step could not be started: {error}")
    try:
        async with asyncio.timeout(limit):
            status = await shell.wait()
    except TimeoutError:
        return Failed(f"The {name} step did not end within {limit:g} s and was killed.")
    finally:
        # Processes that the step left in its process group end with it.
        shell.end()
        # The step may have replaced our folder by a link, which must not be followed.
        ensure_directory(workspace / OWN_FOLDER)
    if status == 0:
        return None
    if reported := _reported_error(error_file, log.mask):
        return reported
    problem, lines = f"The {name} step {describe_status(status)}", output.last_lines()
    return Failed(
        f"{problem}. Its last lines:\n{lines}" if lines else f"{problem} and printed nothing."
    )


def _reported_error(path: Path, mask: Mask) -> Failed | None:
    try:
        typed = _StepError.model_validate(json.loads(read_regular_file(path, _ERROR_SIZE)))
    except (OSError, ValueError, ValidationError, RecursionError):
        return None
    return Failed(
        mask.whole(typed.error),
        None if typed.error_code is None else mask.whole(typed.error_code),
        None if typed.quota is None else typed.quota.model_dump(),
    )


_PASSED_ON: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR")
_DEFAULTS: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}


def job_environment(job: Job, directory: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a build's steps.

    `ours` is the environment of this process; only what every program needs is taken from it.

    """
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


def agent_environment(base: Mapping[str, str], spec: AgentTable, agent_id: str) -> dict[str, str]:
    """Return the environment of an agent's scripts; a template can't set variables of workspaced."""
    own = {name: variable_text(value) for name, value in spec.env.items()}
    return {
        **base,
        **{name: value for name, value in own.items() if not name.startswith("WORKSPACED_")},
        "WORKSPACED_AGENT_ID": agent_id,
        "WORKSPACED_AGENT_NAME": spec.name,
    }


def is_passed_on(name: str) -> bool:
    """Return whether an agent's own process gets the variable: it is a standard one, or of workspaced."""
    return name in _PASSED_ON or name.startswith("WORKSPACED_")
