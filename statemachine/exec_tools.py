"""Arguments and results of the tools that run commands and use files in a workspace.

The gateway checks a call with these models, and so does the agent that it asks.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired
from uuid import NAMESPACE_URL, uuid5

from pydantic import BeforeValidator, Field

# pydantic supports the TypedDict of `typing` only in Python 3.12 and later.
from typing_extensions import TypedDict

from statemachine.events import Frozen

PAGE: Final = 256 * 1024
"""Bytes of output or of a file in one answer at most, and if no number is given."""
LARGEST_BODY: Final = 512 * 1024
"""Bytes of JSON of a request to an agent, and of its answer, at most."""
LONGEST_WAIT: Final = 60.0
"""Seconds for which a call waits at most; a larger number counts as this one."""
ONLY_LOOK: Final = frozenset(("process_output", "process_list", "read_file", "list_files"))
"""The tools that change nothing, so that a repeated call looks again."""


def exec_id_of(workspace_id: str, call_id: str) -> str:
    """Return the id of the process that `execute` starts for a call."""
    return str(uuid5(NAMESPACE_URL, f"workspaced:{workspace_id}:{call_id}"))


def _unless_blank(value: object) -> object:
    return None if value == "" else value


def _unless_null(value: object) -> object:
    return [] if value is None else value


_Blankable = BeforeValidator(_unless_blank)
"""An empty text counts as absent."""
OptionalText = Annotated[str | None, _Blankable]
Encoding = Annotated[Literal["utf-8", "base64"] | None, _Blankable]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Offset = Annotated[int, Field(ge=0, lt=2**63)]
"""A position in a file: the operating system has no larger ones."""
Columns = Annotated[int, Field(ge=1, le=65_535)]


class TerminalSize(Frozen):
    """The size of a terminal, in characters."""

    cols: Columns = 80
    rows: Columns = 24


class ExecuteArguments(Frozen):
    """The arguments of execute."""

    command: str
    """For `/bin/sh -c`."""
    cwd: OptionalText = None
    """Where it runs; a relative path starts at the agent's directory, which is also the default."""
    env: dict[str, str] = Field(default={}, repr=False)
    """Variables in addition to those of the template."""
    stdin: OptionalText = Field(default=None, repr=False)
    """All its input, or with `open_stdin` or `pty` the beginning of it."""
    encoding: Encoding = None
    """How `stdin` is written; utf-8 if it is absent."""
    open_stdin: bool = False
    """The input stays open for process_input."""
    pty: TerminalSize | None = None
    """Run it in a terminal of this size. The input stays open."""
    timeout_seconds: Seconds = 3600
    """After this time it is ended; 0: never."""
    wait_seconds: Seconds = 10
    """How long the call waits for its end."""


class ProcessOutputArguments(Frozen):
    """The arguments of process_output."""

    exec_id: str
    after: Count = 0
    """The byte of the output from which on it is returned."""
    limit: Count = PAGE
    wait_seconds: Seconds = 0
    """How long the call waits until there is more, or the process has ended."""


class ProcessInputArguments(Frozen):
    """The arguments of process_input."""

    exec_id: str
    data: OptionalText = Field(default=None, repr=False)
    encoding: Encoding = None
    """How `data` is written; utf-8 if it is absent."""
    close: bool = False
    """Close the input when all of `data` is taken."""
    cols: Columns | None = None
    rows: Columns | None = None


class ProcessSignalArguments(Frozen):
    """The arguments of process_signal."""

    exec_id: str
    signal: Literal["INT", "TERM", "KILL", "HUP", "QUIT", "USR1", "USR2"]


class ProcessListArguments(Frozen):
    """The arguments of process_list: none."""


class ReadFileArguments(Frozen):
    """The arguments of read_file."""

    path: str
    offset: Offset = 0
    limit: Count = PAGE


class WriteFileArguments(Frozen):
    """The arguments of write_file."""

    path: str
    content: str = Field(repr=False)
    encoding: Encoding = None
    """How `content` is written; utf-8 if it is absent."""
    mode: Annotated[str | None, Field(pattern="^[0-7]{3,4}$"), _Blankable] = None
    """The permissions as octal digits, such as `0644`."""
    append: bool = False
    create_directories: bool = False


class Edit(Frozen):
    """One replacement in a file."""

    old: str
    """The text to replace. It must occur exactly once, unless `all` is set."""
    new: str
    all: bool = False


class EditFileArguments(Frozen):
    """The arguments of edit_file."""

    path: str
    edits: Annotated[list[Edit], BeforeValidator(_unless_null)] = Field(repr=False)
    """A list that is null is empty."""


class ListFilesArguments(Frozen):
    """The arguments of list_files."""

    path: OptionalText = None
    """The directory; the agent's own if it is absent."""
    depth: Annotated[int, Field(ge=1)] = 1
    hidden: bool = False
    """Also list names that begin with a dot, and what is below them."""
    after: OptionalText = None
    """`next` of the page before."""


EXEC_TOOLS: Final[dict[str, type[Frozen]]] = {
    "execute": ExecuteArguments,
    "process_output": ProcessOutputArguments,
    "process_input": ProcessInputArguments,
    "process_signal": ProcessSignalArguments,
    "process_list": ProcessListArguments,
    "read_file": ReadFileArguments,
    "write_file": WriteFileArguments,
    "edit_file": EditFileArguments,
    "list_files": ListFilesArguments,
}
"""The tools by name, with the models of their arguments."""

Status = Literal["running", "exited"]
Reason = Literal["stopped", "timeout", "lost"]


class HowItEnded(TypedDict):
    """Whether a process has exited, and how."""

    status: Status
    exit_code: NotRequired[int]
    signal: NotRequired[str]
    reason: NotRequired[Reason]


class ProcessState(HowItEnded):
    """The result of execute and process_output."""

    exec_id: str
    output: str
    offset: int
    """Where `output` begins, in bytes from the first one ever written."""
    next: int
    dropped: NotRequired[int]
    """Bytes that were left out so far, because only the beginning and the end are kept."""


class InputResult(TypedDict):
    """The result of process_input."""

    written: int
    """Bytes that were taken; send the rest again."""


class SignalResult(TypedDict):
    """The result of process_signal."""

    signaled: bool


class ListedProcess(HowItEnded):
    """A process in the result of process_list."""

    exec_id: str
    command: str
    started_at: str
    ended_at: NotRequired[str]


class ProcessesResult(TypedDict):
    """The result of process_list."""

    processes: list[ListedProcess]


class FileContent(TypedDict):
    """The result of read_file."""

    content: str
    encoding: Literal["utf-8", "base64"]
    size: int
    next: NotRequired[int]


class FileWritten(TypedDict):
    """The result of write_file."""

    size: int


class FileEdited(TypedDict):
    """The result of edit_file."""

    replaced: int


class FileEntry(TypedDict):
    """An entry in the result of list_files."""

    path: str
    kind: Literal["file", "directory", "link", "other"]
    size: int
    modified_at: str


class FilesResult(TypedDict):
    """The result of list_files."""

    entries: list[FileEntry]
    next: NotRequired[str]


class ExecError(TypedDict):
    """The result of a call with `is_error`."""

    error: str
    state: NotRequired[str]
    next_step: NotRequired[str | None]


ExecResult = (
    ProcessState
    | InputResult
    | SignalResult
    | ProcessesResult
    | FileContent
    | FileWritten
    | FileEdited
    | FilesResult
)


EXEC_RESULTS: Final[dict[str, type]] = {
    "execute": ProcessState,
    "process_output": ProcessState,
    "process_input": InputResult,
    "process_signal": SignalResult,
    "process_list": ProcessesResult,
    "read_file": FileContent,
    "write_file": FileWritten,
    "edit_file": FileEdited,
    "list_files": FilesResult,
}
"""The tools by name, with the types of their results."""


class ExecAnswer(TypedDict):
    """An agent's answer to a request."""

    is_error: bool
    result: Any
    """An ExecResult, or with `is_error` an ExecError."""


class ExecStarted(TypedDict):
    """Data of `exec_started`."""

    exec_id: str
    call_id: str
    command: str
    cwd: str


class ExecOutput(TypedDict):
    """Data of `exec_output`."""

    exec_id: str
    offset: int
    next: int
    output: str


class ExecExited(TypedDict):
    """Data of `exec_exited`."""

    exec_id: str
    exit_code: NotRequired[int]
    signal: NotRequired[str]
    reason: NotRequired[Reason]
    size: int
