"""The tables of template.toml that the local provisioner reads, and the checks of their values.

`template push` and the provisioner read `[build]` and `[[agent]]` with related models and make the
same checks with the same messages. A push is stricter: it also refuses unknown keys and values of
other types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from statemachine.events import Frozen

LOCAL_POOL: Final = "local"
"""The pool of the provisioner that `workspaced up` runs."""
MOST_AGENTS: Final = 64
"""Maximum number of agents of one template."""
PARAMETER: Final = "WORKSPACED_PARAM_"
"""Prefix of the environment variables that hold parameters."""
LONGEST_VARIABLE: Final = 32 * 4096
"""Maximum size in bytes of an environment variable in Linux, with the NUL at its end
(MAX_ARG_STRLEN)."""


def _env_value(value: object) -> object:
    if not isinstance(value, str | int | float):
        raise ValueError("expected a text, a number, true or false")  # noqa: TRY004 — pydantic's
    return value


def _exact_env_value(value: object) -> object:
    if isinstance(value, float) or not isinstance(value, str | int):
        raise ValueError(  # noqa: TRY004 — pydantic's
            "expected a text, a whole number, true or false; write a number with a fraction as a text"
        )
    return value


EnvValue = Annotated[str | int | float | bool, BeforeValidator(_env_value)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AgentName = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class BuildTable(Frozen):
    """The `[build]` table: a shell command for each transition; an empty text means no command."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=False)

    start: str = ""
    stop: str = "true"
    delete: str = "true"


class AgentTable(Frozen):
    """An `[[agent]]` table."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=False)

    name: AgentName
    parent: str | None = None
    display_order: int = 0
    directory: str = "."
    startup_script: str = ""
    startup_timeout_seconds: PositiveSeconds = 600
    shutdown_script: str = ""
    shutdown_timeout_seconds: PositiveSeconds = 60
    env: dict[str, EnvValue] = Field(default_factory=dict)


class PushedBuild(BuildTable):
    """The `[build]` table as a push accepts it: the key `start` is required."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    start: str


class PushedAgent(AgentTable):
    """An `[[agent]]` table as a push accepts it.

    A number with a fraction is not accepted as the value of a variable: scripts would receive
    `3.10` as `3.1`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    env: dict[str, Annotated[EnvValue, BeforeValidator(_exact_env_value)]] = Field(
        default_factory=dict
    )


def variable_of(parameter: str) -> str:
    """Return the environment variable in which build steps and scripts receive a parameter."""
    return PARAMETER + re.sub(r"[^A-Z0-9]", "_", parameter.upper())


def variable_fault(name: str, value: str) -> str | None:
    """Return why a program cannot be started with this environment variable; None if it can."""
    if not name or "=" in name or "\0" in name:
        return "its name is empty, or holds '=' or a NUL"
    if "\0" in value:
        return "its value holds a NUL"
    try:
        size = variable_size(name, value)
    except UnicodeEncodeError:
        return "it holds half a character (a lone surrogate)"
    if size > LONGEST_VARIABLE:
        given = len(_bytes(value))
        return f"its value has {given:,} bytes, and {LONGEST_VARIABLE - size + given:,} is the most"
    return None


def variable_size(name: str, value: str) -> int:
    """Return the size of an environment variable in bytes, as Linux counts it.

    Raises UnicodeEncodeError.
    """
    return len(_bytes(name)) + len(_bytes(value)) + len("=\0")


def variable_text(value: str | float | bool) -> str:
    """Return the text that a variable has for a value in an agent's `env`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def agent_faults(agents: Sequence[AgentTable]) -> Iterator[tuple[int, str, str]]:
    """Yield each fault of a template's agents: the agent's index, the key, and a description."""
    if len(agents) > MOST_AGENTS:
        message = f"one agent too many: {len(agents)} are given, and {MOST_AGENTS} is the most"
        yield MOST_AGENTS, "name", message
    names = [agent.name for agent in agents]
    parents = {agent.name: agent.parent for agent in agents}
    for index, agent in enumerate(agents):
        if names.index(agent.name) < index:
            yield index, "name", f"another agent has the name {agent.name!r} too"
        if agent.parent is not None and agent.parent not in parents:
            known = ", ".join(map(repr, parents))
            yield index, "parent", f"no agent has the name {agent.parent!r}; there are {known}"
        elif agent.name in _ancestors(agent.name, parents):
            yield index, "parent", f"the agent {agent.name!r} has itself among its parents"
        if unusable := _directory_fault(agent.directory):
            yield index, "directory", unusable
        for name, value in agent.env.items():
            if fault := variable_fault(name, variable_text(value)):
                yield index, "env", f"the variable {name!r} can't be passed to a program: {fault}"


def shared_variables(parameters: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each environment variable that several parameters would use, with their names."""
    found: dict[str, list[str]] = {}
    for name in parameters:
        found.setdefault(variable_of(name), []).append(name)
    yield from ((variable, names) for variable, names in found.items() if len(set(names)) > 1)


def _directory_fault(directory: str) -> str:
    """Return why commands can't start in this directory of a workspace; "" if they can."""
    if not directory or "\0" in directory:
        return "it is empty or holds a NUL; write '.' for the workspace itself"
    if directory.startswith("/") or ".." in directory.split("/"):
        return f"{directory!r} is not below the workspace: write a relative path without '..'"
    return ""


def _ancestors(name: str, parents: Mapping[str, str | None]) -> set[str]:
    found: set[str] = set()
    above = parents[name]
    while above is not None and above in parents and above not in found:
        found.add(above)
        above = parents[above]
    return found


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
