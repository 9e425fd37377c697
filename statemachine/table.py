"""The transition table: every legal move of a chat, each written once.

The engine, the diagrams and the tests read TABLE, and no other place decides which state follows.
A trigger is not the type of a message. `machine.pending` derives triggers from the facts: the same
`build_succeeded` can be `built`, `built_without_agents`, `unselectable`, `stopped` or `deleted`.

`python -m statemachine.table` updates the diagrams in ARCHITECTURE.md and README.md; a test checks
that they match TABLE.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from statemachine.states import STATE_INFO, State


class Trigger(StrEnum):
    """The cause of a move from one state to another."""

    START_FOLLOWED = "start_followed"
    STOP_FOLLOWED = "stop_followed"
    BUILT = "built"
    BUILT_WITHOUT_AGENTS = "built_without_agents"
    UNSELECTABLE = "unselectable"
    BUILD_FAILED = "build_failed"
    BUILD_CANCELED = "build_canceled"
    STOPPED = "stopped"
    DELETED = "deleted"
    WORKSPACE_DELETED = "workspace_deleted"
    AGENT_CONNECTED = "agent_connected"
    AGENT_STARTED = "agent_started"
    SCRIPTS_READY = "scripts_ready"
    SCRIPTS_FAILED = "scripts_failed"
    DEADLINE_PASSED = "deadline_passed"
    WAIT_RESUMED = "wait_resumed"
    CANCEL_REQUESTED = "cancel_requested"
    CANCELED_UNBEGUN = "canceled_unbegun"
    AGENT_EXITED = "agent_exited"


class Row(NamedTuple):
    """A legal move: from each state in `sources`, `trigger` leads to `dest`."""

    trigger: Trigger
    sources: tuple[State, ...]
    dest: State


S, T = State, Trigger
_ANY: Final = tuple(State)
_BOUND: Final = tuple(state for state in State if STATE_INFO[state].bound)
_OPEN_START: Final = (S.BUILDING, S.BUILD_TIMED_OUT, S.CANCELING_BUILD, S.BUILD_ABANDONED)
_OPEN_STOP: Final = (S.STOPPING, S.STOP_TIMED_OUT, S.CANCELING_STOP, S.STOP_ABANDONED)
"""The states in which the build that is followed has no terminal fact."""

# fmt: off
TABLE: Final[tuple[Row, ...]] = (
    #   trigger                  from                                              to
    Row(T.START_FOLLOWED,        _ANY,                                             S.BUILDING),
    Row(T.STOP_FOLLOWED,         _ANY,                                             S.STOPPING),
    Row(T.WORKSPACE_DELETED,     _BOUND,                                           S.NONE),
    Row(T.BUILT,                 _OPEN_START,                                      S.AGENT_CONNECTING),
    Row(T.BUILT_WITHOUT_AGENTS,  _OPEN_START,                                      S.READY),
    Row(T.UNSELECTABLE,          _OPEN_START,                                      S.SELECTION_ERROR),
    Row(T.BUILD_FAILED,          _OPEN_START,                                      S.BUILD_FAILED),
    Row(T.BUILD_CANCELED,        _OPEN_START,                                      S.BUILD_CANCELED),
    Row(T.STOPPED,               _OPEN_STOP,                                       S.STOPPED),
    Row(T.DELETED,               _OPEN_STOP,                                       S.NONE),
    Row(T.BUILD_FAILED,          _OPEN_STOP,                                       S.STOP_FAILED),
    Row(T.BUILD_CANCELED,        _OPEN_STOP,                                       S.STOP_CANCELED),
    Row(T.AGENT_CONNECTED,       (S.AGENT_CONNECTING, S.AGENT_NOT_READY),          S.SCRIPTS_RUNNING),
    Row(T.AGENT_STARTED,         (S.AGENT_CONNECTING, S.AGENT_NOT_READY),          S.SCRIPTS_RUNNING),
    Row(T.AGENT_EXITED,          (S.AGENT_CONNECTING,),                            S.AGENT_NOT_READY),
    Row(T.SCRIPTS_READY,         (S.SCRIPTS_RUNNING, S.SCRIPTS_FAILED,
                                  S.SCRIPTS_TIMED_OUT),                            S.READY),
    Row(T.SCRIPTS_FAILED,        (S.SCRIPTS_RUNNING,),                             S.SCRIPTS_FAILED),
    Row(T.DEADLINE_PASSED,       (S.BUILDING,),                                    S.BUILD_TIMED_OUT),
    Row(T.DEADLINE_PASSED,       (S.AGENT_CONNECTING,),                            S.AGENT_NOT_READY),
    Row(T.DEADLINE_PASSED,       (S.SCRIPTS_RUNNING,),                             S.SCRIPTS_TIMED_OUT),
    Row(T.DEADLINE_PASSED,       (S.STOPPING,),                                    S.STOP_TIMED_OUT),
    Row(T.WAIT_RESUMED,          (S.BUILD_TIMED_OUT,),                             S.BUILDING),
    Row(T.WAIT_RESUMED,          (S.STOP_TIMED_OUT,),                              S.STOPPING),
    Row(T.CANCEL_REQUESTED,      (S.BUILDING,),                                    S.CANCELING_BUILD),
    Row(T.CANCEL_REQUESTED,      (S.BUILD_TIMED_OUT,),                             S.BUILD_ABANDONED),
    Row(T.CANCEL_REQUESTED,      (S.STOPPING,),                                    S.CANCELING_STOP),
    Row(T.CANCEL_REQUESTED,      (S.STOP_TIMED_OUT,),                              S.STOP_ABANDONED),
    Row(T.CANCELED_UNBEGUN,      (S.BUILDING, S.BUILD_TIMED_OUT),                  S.BUILD_ABANDONED),
    Row(T.CANCELED_UNBEGUN,      (S.STOPPING, S.STOP_TIMED_OUT),                   S.STOP_ABANDONED),
    Row(T.DEADLINE_PASSED,       (S.CANCELING_BUILD,),                             S.BUILD_ABANDONED),
    Row(T.DEADLINE_PASSED,       (S.CANCELING_STOP,),                              S.STOP_ABANDONED),
)
# fmt: on

LEGAL: Final = frozenset((row.trigger, source) for row in TABLE for source in row.sources)
"""The pairs (trigger, state) that have a row."""

ADDED: Final = frozenset({(T.AGENT_STARTED, S.AGENT_NOT_READY)})
"""The pairs of `LEGAL` that led nowhere in earlier versions, although their events could occur.

Logs of these versions are replayed without them.
"""

END: Final = "<!-- end of diagram -->"


def mermaid(rows: Iterable[Row] = TABLE) -> str:
    """Draw the whole table. Moves from all states start at one node, `any` or `any_with_a_workspace`."""
    lines = ["stateDiagram-v2", "    [*] --> none"]
    for row in rows:
        lines += [f"    {name} --> {row.dest}: {row.trigger}" for name in _origins(row)]
    for state in State:
        if (reason := STATE_INFO[state].reason) is not None:
            lines.append(f"    {state}: failed ({reason})")
        elif STATE_INFO[state].wire != state:
            lines.append(f"    {state}: {STATE_INFO[state].wire} (being canceled)")
    return "\n".join(lines)


def wire_mermaid(rows: Iterable[Row] = TABLE) -> str:
    """Draw the table with the states of the contract: one `failed`, one arrow for each pair of states."""
    moves: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name in _origins(row):
            source = STATE_INFO[name].wire if isinstance(name, State) else name
            triggers = moves.setdefault((source, STATE_INFO[row.dest].wire), [])
            if row.trigger not in triggers:
                triggers.append(row.trigger)
    lines = [f"    {source} --> {dest}: {', '.join(on)}" for (source, dest), on in moves.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> none", *lines])


DRAWINGS: Final = {
    "<!-- diagram: made by `make diagram`, do not edit -->": mermaid,
    "<!-- wire diagram: made by `make diagram`, do not edit -->": wire_mermaid,
}
"""Marker line in a document -> the function that draws the diagram below it."""


def redraw(document: str) -> str:
    """Return `document` with its diagrams drawn again. Raises ValueError if it has no marker."""
    found = [begin for begin in DRAWINGS if begin in document]
    if not found:
        raise ValueError("the document has no marker line of a diagram")
    for begin in found:
        head, rest = document.split(begin, 1)
        _, tail = rest.split(END, 1)
        document = f"{head}{begin}\n```mermaid\n{DRAWINGS[begin]()}\n```\n{END}{tail}"
    return document


def _origins(row: Row) -> Iterable[State | str]:
    if row.sources == _ANY:
        return ("any",)
    if row.sources == _BOUND:
        return ("any_with_a_workspace",)
    return row.sources


if __name__ == "__main__":
    for name in ("ARCHITECTURE.md", "README.md"):
        path = Path(__file__).parent.parent / name
        path.write_text(redraw(path.read_text()))
