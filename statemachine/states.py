"""The states of a chat, and the properties of each state.

The rest of the core uses these properties instead of lists of states. The contract has one state
`failed` with a reason. Here each reason is a separate state, so that the transition table needs no
conditions. A failed start and a failed stop are different states, because the same late fact leads
from them to different states.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

WireState = Literal[
    "none",
    "building",
    "agent_connecting",
    "scripts_running",
    "ready",
    "failed",
    "stopping",
    "stopped",
]
"""A state as messages name it (docs/contract.md, section 4)."""

AgentStatus = Literal["connecting", "connected", "disconnected", "timeout"]
"""The connection of an agent as messages name it. `timeout`: the agent did not connect in time."""


class State(StrEnum):
    """The state of a chat."""

    NONE = "none"
    BUILDING = "building"
    AGENT_CONNECTING = "agent_connecting"
    SCRIPTS_RUNNING = "scripts_running"
    READY = "ready"
    BUILD_FAILED = "build_failed"
    BUILD_CANCELED = "build_canceled"
    BUILD_TIMED_OUT = "build_timed_out"
    SELECTION_ERROR = "selection_error"
    AGENT_NOT_READY = "agent_not_ready"
    SCRIPTS_FAILED = "scripts_failed"
    SCRIPTS_TIMED_OUT = "scripts_timed_out"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STOP_FAILED = "stop_failed"
    STOP_CANCELED = "stop_canceled"
    STOP_TIMED_OUT = "stop_timed_out"
    CANCELING_BUILD = "canceling_build"
    CANCELING_STOP = "canceling_stop"
    BUILD_ABANDONED = "build_abandoned"
    STOP_ABANDONED = "stop_abandoned"


class FailureReason(StrEnum):
    """The reason for the state `failed`."""

    BUILD_FAILED = "build_failed"
    BUILD_CANCELED = "build_canceled"
    BUILD_TIMEOUT = "build_timeout"
    SELECTION_ERROR = "selection_error"
    AGENT_NOT_READY = "agent_not_ready"
    STARTUP_SCRIPTS_FAILED = "startup_scripts_failed"
    STARTUP_SCRIPTS_TIMEOUT = "startup_scripts_timeout"


class Limit(StrEnum):
    """The setting that limits how long a state may last.

    The values are attribute names of `Limits`.
    """

    BUILD = "build"
    AGENT_CONNECT = "agent_connect"
    STARTUP_SCRIPTS = "startup_scripts"
    CANCEL = "cancel"


class Phase(StrEnum):
    """The meaning of a state for the tool rules (docs/contract.md, section 5)."""

    NOTHING = "nothing"
    BEING_BUILT = "being built"
    RUNNING = "running"
    FAILED_BUILD = "failed build"
    BEING_STOPPED = "being stopped"
    STOPPED = "stopped"
    FAILED_STOP = "failed stop"
    """Also the phase of a state after a failed delete. `Chat.phase` replaces it by the phase of what is left of
    the workspace."""
    FAILED_DELETE = "failed delete"


@dataclass(frozen=True, slots=True)
class StateInfo:
    """The properties of a state."""

    phase: Phase
    wire: WireState = "failed"
    reason: FailureReason | None = None
    limit: Limit | None = None
    overdue: bool = False
    """Whether a limit has passed, so that only a late fact or a new call can move the chat."""
    end_rejected: Phase | None = None
    """The phase if the terminal fact of the build was rejected, so that no other one is
    expected."""

    @property
    def shown(self) -> str:
        """The state as messages name it, with the reason of `failed`: `failed:<reason>`."""
        return self.wire if self.reason is None else f"{self.wire}:{self.reason}"

    @property
    def settled(self) -> bool:
        """Whether waiting calls are answered in this state."""
        return self.limit is None

    @property
    def bound(self) -> bool:
        """Whether the chat has a workspace."""
        return self.phase is not Phase.NOTHING


STATE_INFO: Final[dict[State, StateInfo]] = {
    State.NONE: StateInfo(Phase.NOTHING, "none"),
    State.BUILDING: StateInfo(Phase.BEING_BUILT, "building", limit=Limit.BUILD),
    State.AGENT_CONNECTING: StateInfo(Phase.RUNNING, "agent_connecting", limit=Limit.AGENT_CONNECT),
    State.SCRIPTS_RUNNING: StateInfo(Phase.RUNNING, "scripts_running", limit=Limit.STARTUP_SCRIPTS),
    State.READY: StateInfo(Phase.RUNNING, "ready"),
    State.BUILD_FAILED: StateInfo(Phase.FAILED_BUILD, reason=FailureReason.BUILD_FAILED),
    State.BUILD_CANCELED: StateInfo(Phase.FAILED_BUILD, reason=FailureReason.BUILD_CANCELED),
    State.BUILD_TIMED_OUT: StateInfo(
        Phase.BEING_BUILT,
        reason=FailureReason.BUILD_TIMEOUT,
        overdue=True,
        end_rejected=Phase.FAILED_BUILD,
    ),
    State.SELECTION_ERROR: StateInfo(Phase.RUNNING, reason=FailureReason.SELECTION_ERROR),
    State.AGENT_NOT_READY: StateInfo(
        Phase.RUNNING, reason=FailureReason.AGENT_NOT_READY, overdue=True
    ),
    State.SCRIPTS_FAILED: StateInfo(Phase.RUNNING, reason=FailureReason.STARTUP_SCRIPTS_FAILED),
    State.SCRIPTS_TIMED_OUT: StateInfo(
        Phase.RUNNING, reason=FailureReason.STARTUP_SCRIPTS_TIMEOUT, overdue=True
    ),
    State.STOPPING: StateInfo(Phase.BEING_STOPPED, "stopping", limit=Limit.BUILD),
    State.STOPPED: StateInfo(Phase.STOPPED, "stopped"),
    State.STOP_FAILED: StateInfo(Phase.FAILED_STOP, reason=FailureReason.BUILD_FAILED),
    State.STOP_CANCELED: StateInfo(Phase.FAILED_STOP, reason=FailureReason.BUILD_CANCELED),
    State.STOP_TIMED_OUT: StateInfo(
        Phase.BEING_STOPPED,
        reason=FailureReason.BUILD_TIMEOUT,
        overdue=True,
        end_rejected=Phase.FAILED_STOP,
    ),
    # A provisioner was asked to end the build. The build's own end counts, also a success.
    State.CANCELING_BUILD: StateInfo(Phase.BEING_BUILT, "building", limit=Limit.CANCEL),
    State.CANCELING_STOP: StateInfo(Phase.BEING_STOPPED, "stopping", limit=Limit.CANCEL),
    # Workers canceled the build themselves. It has no terminal fact; one that comes late counts.
    State.BUILD_ABANDONED: StateInfo(Phase.FAILED_BUILD, reason=FailureReason.BUILD_CANCELED),
    State.STOP_ABANDONED: StateInfo(Phase.FAILED_STOP, reason=FailureReason.BUILD_CANCELED),
}
