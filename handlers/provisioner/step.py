"""One step of a build: a shell command of the template, heard, bounded and judged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, StringConstraints, ValidationError

from handlers.publishing import BuildLog
from handlers.publishing.agent_files import OURS
from handlers.publishing.atomic_files import own_directory, read_plain
from handlers.sandbox.exec_limits import command_fault
from handlers.sandbox.shell import Shell, status_words
from statemachine.events import Quota
from statemachine.mask import Mask

LIMIT: Final = 3600.0
"""Seconds that a step may take. Past the chat's own limit it may still end well."""
_ERROR_FILE: Final = "error.json"
_ERROR_SIZE: Final = 65_536


@dataclass(frozen=True, slots=True)
class Failed:
    """The build came to nothing, and why."""

    error: str
    error_code: str | None = None
    quota: Mapping[str, float] | None = None

    def data(self) -> dict[str, Any]:
        """Return what `build_failed` says of it."""
        said = {"error": self.error, "error_code": self.error_code, "quota": self.quota}
        return {key: value for key, value in said.items() if value is not None}


class _Typed(BaseModel):
    """What a step may write to `$WORKSPACED_ERROR_FILE`."""

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
    """Run a step to its end and return why it failed, if it did. Cancelled, it leaves nothing running."""
    if fault := command_fault(command):
        return Failed(f"The {name} step could not be started: {fault}")
    error_file = workspace / OURS / _ERROR_FILE
    error_file.unlink(missing_ok=True)
    heard = log.stream(name)
    env = {**env, "WORKSPACED_ERROR_FILE": str(error_file)}
    try:
        shell = Shell(command, cwd=workspace, env=env, output=heard.feed, prefix=prefix)
    except (OSError, ValueError) as no:
        return Failed(f"The {name} step could not be started: {no}")
    try:
        async with asyncio.timeout(limit):
            status = await shell.wait()
    except TimeoutError:
        return Failed(f"The {name} step did not end within {limit:g} s and was killed.")
    finally:
        # What a step leaves running in its process group ends with it.
        shell.end()
        # What the step left in its place is not ours to follow, neither now nor when we write there.
        own_directory(workspace / OURS)
    if status == 0:
        return None
    if typed := _typed_error(error_file, log.mask):
        return typed
    words, said = f"The {name} step {status_words(status)}", heard.last_lines()
    return Failed(f"{words}. Its last lines:\n{said}" if said else f"{words} and said nothing.")


def _typed_error(path: Path, mask: Mask) -> Failed | None:
    try:
        typed = _Typed.model_validate(json.loads(read_plain(path, _ERROR_SIZE)))
    except (OSError, ValueError, ValidationError, RecursionError):
        return None
    return Failed(
        mask.whole(typed.error),
        None if typed.error_code is None else mask.whole(typed.error_code),
        None if typed.quota is None else typed.quota.model_dump(),
    )
