"""The values that the client takes and returns. Unknown keys of newer servers are ignored."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """The base of all values: they cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Workspace(Value):
    """The workspace of a chat."""

    id: str
    name: str
    owner_name: str | None = None
    template_id: str | None = None


class Build(Value):
    """The newest build of a workspace."""

    id: str
    number: int
    transition: str
    """`start`, `stop` or `delete`."""
    started_at: datetime
    begun_at: datetime | None = None
    """When a provisioner took the build; None: none has."""
    cancel_requested_at: datetime | None = None
    pool: str | None = None


class Agent(Value):
    """The agent that was chosen for the chat."""

    id: str
    name: str
    status: str
    """`connecting`, `connected`, `disconnected` or `timeout`."""
    lifecycle: str | None = None
    reason: str | None = None
    """Why the agent is gone."""


class Failure(Value):
    """Why the state is `failed`."""

    reason: str
    message: str
    error_code: str | None = None


class Cause(Value):
    """The event that changed a state."""

    source: str
    id: str
    type: str


class State(Value):
    """The state of a chat."""

    chat_id: str
    version: int
    state: str
    """`none`, `building`, `agent_connecting`, `scripts_running`, `ready`, `failed`, `stopping` or `stopped`."""
    previous_state: str = "none"
    workspace: Workspace | None = None
    build: Build | None = None
    agent: Agent | None = None
    failure: Failure | None = None
    deadline: datetime | None = None
    stops_at: datetime | None = None
    """When the workspace is stopped if nobody uses it."""
    cause: Cause | None = None
    """None: nothing has happened yet."""
    time: datetime | None = None
    """When it became true."""
    stored_at: datetime | None = None
    """When NATS stored it."""
    data: dict[str, Any] = Field(default={}, repr=False)
    """The state as it was published, with keys that this version of the client does not know."""

    def __str__(self) -> str:
        """Return the state as a line for people, with the failure if there is one."""
        if self.failure is None:
            return self.state
        return f"{self.state} ({self.failure.reason}): {self.failure.message}"

    @property
    def settled(self) -> bool:
        """Whether the state lasts until the next request or a late fact."""
        return self.state in ("ready", "failed", "stopped", "none")


class Log(Value):
    """Output of a build or of its agents: one or more lines. Treat it as untrusted text."""

    build_id: str
    origin: str = ""
    """`provisioner` or `agent`."""
    stage: str = ""
    level: str = ""
    output: str = ""
    sequence: int = 0
    """Counts from 1 for each build and origin."""

    def __str__(self) -> str:
        """Return the output without the end of its last line, for `print`."""
        return self.output.removesuffix("\n")


class Answer(Value):
    """The answer to a call."""

    call_id: str
    tool: str
    is_error: bool
    """The call itself was wrong: its arguments, a name, a permission, or the configuration."""
    result: dict[str, Any]
    """With `is_error`: `{"error": text}`. A failed build or refused values have the key `error` too."""
    conflict: bool = False
    """Another request with other content used the same `call_id`."""
    ignored: tuple[str, ...] = ()
    """Arguments that the tool does not have."""

    @property
    def ok(self) -> bool:
        """Whether the call succeeded: neither was it wrong, nor did a build fail."""
        return not self.is_error and "error" not in self.result

    @property
    def text_for_model(self) -> str:
        """The result as text, to be given to a model as the result of its tool call."""
        return json.dumps(self.result, ensure_ascii=False)


class Exit(Value):
    """How a command in a workspace ended."""

    exit_code: int | None = None
    signal: str | None = None
    """The signal that ended it, without `SIG`."""
    reason: str | None = None
    """`timeout`, `stopped` or `lost`, if it did not end by itself."""
