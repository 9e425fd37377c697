"""What build steps and scripts see: values reach them through the environment and in no other way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from handlers.provisioner.job import AgentSpec, Job

PARAMETER: Final = "WORKSPACED_PARAM_"
"""What the variable of a parameter begins with."""
_PASSED_ON: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR")
_LONGEST: Final = 32 * 4096
"""Bytes that the kernel takes of one variable, its name and two more included (MAX_ARG_STRLEN)."""
_ROOM: Final = 192 * 1024
"""Bytes of what the kernel takes together that are left for the command itself."""
_MOST: Final = 6 * 1024 * 1024
_LEAST: Final = 64 * 1024
"""Bounds of what is left for variables, whatever the limit of the stack is, which decides that."""
_POINTER: Final = 8
_DEFAULTS: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}


def of_job(job: Job, directory: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a build's steps; of our own only what any program needs."""
    passed = {name: ours[name] for name in _PASSED_ON if name in ours}
    parameters = {f"{PARAMETER}{_name(k)}": v for k, v in job.parameters.items()}
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


def of_agent(base: Mapping[str, str], spec: AgentSpec, agent_id: str) -> dict[str, str]:
    """Return the environment of an agent's scripts; the template can't pass for workspaced."""
    own = {name: _text(value) for name, value in spec.env.items()}
    return {
        **base,
        **{name: value for name, value in own.items() if not name.startswith("WORKSPACED_")},
        "WORKSPACED_AGENT_ID": agent_id,
        "WORKSPACED_AGENT_NAME": spec.name,
    }


def faults(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that no program can be started with, and why."""
    room = max(min(os.sysconf("SC_ARG_MAX"), _MOST) - _ROOM, _LEAST)
    together = 0
    for name, value in env.items():
        fault, size = _fault(name, value)
        together += size
        if not fault and together > room:
            fault = f"all variables together have more than {room:,} bytes"
            together -= size
        if fault:
            yield name, f"{_origin(name)} can't be passed to a program: {fault}"


def _fault(name: str, value: str) -> tuple[str, int]:
    """Say what is wrong with a variable, and how many bytes of the kernel's room it takes."""
    if not name or "=" in name or "\0" in name:
        return "its name is empty, or holds '=' or a NUL", 0
    if "\0" in value:
        return "its value holds a NUL", 0
    try:
        size = len(os.fsencode(name)) + len(os.fsencode(value)) + len("=\0")
    except UnicodeEncodeError:
        return "it holds half a character (a lone surrogate)", 0
    if size > _LONGEST:
        most = _LONGEST - (size - len(os.fsencode(value)))
        return f"its value has {len(os.fsencode(value)):,} bytes, and {most:,} is the most", 0
    return "", size + _POINTER


def _origin(name: str) -> str:
    if name.startswith(PARAMETER):
        return f"the value of parameter {name.removeprefix(PARAMETER).lower()!r}"
    return f"the variable {name!r}"


def is_plain(name: str) -> bool:
    """Tell whether a variable is one that any program may have, or workspaced's own."""
    return name in _PASSED_ON or name.startswith("WORKSPACED_")


def _name(parameter: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", parameter.upper())


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
