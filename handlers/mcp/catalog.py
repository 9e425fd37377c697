"""The tools as `tools/list` shows them: those of workspaced as they are, and two for clients that wait in turns."""

from __future__ import annotations

from typing import Any, Final

from mcp_types import Tool, ToolAnnotations
from workspaced import tools

WAIT: Final = "wait_for_workspace"
STATUS: Final = "workspace_status"
_NO_ARGUMENTS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
_EXTRA: Final = (
    {
        "name": WAIT,
        "description": "Wait for the create_workspace, start_workspace or stop_workspace call that is still open, and "
        "return its result. Use it when one of these said `status: in_progress`; if this tool says so too, call it "
        "again. It changes nothing.",
        "inputSchema": _NO_ARGUMENTS,
    },
    {
        "name": STATUS,
        "description": "Show the state of this chat's workspace at once: `state`, `build_id`, `deadline` (when the "
        "state ends at the latest) and the last line of the build's log. It changes nothing.",
        "inputSchema": _NO_ARGUMENTS,
    },
)

_READ_ONLY: Final = frozenset(
    {
        *("list_templates", "read_template", WAIT, STATUS),
        *("process_output", "process_list", "read_file", "list_files"),
    }
)
_IDEMPOTENT: Final = _READ_ONLY | {"create_workspace", "start_workspace", "stop_workspace"}
"""Tools whose repeat changes nothing more."""
_DESTRUCTIVE: Final = frozenset(
    {"stop_workspace", "execute", "process_signal", "process_input", "write_file", "edit_file"}
)
"""Tools that can end or overwrite something. Stopping a workspace ends what runs in it."""
_OPEN_WORLD: Final = frozenset({"execute", "process_input"})
"""Tools that can reach other machines: a command may."""


def listed(*, may_execute: bool) -> list[Tool]:
    """Return the tools in their order, which never changes; without commands and files if they are not permitted."""
    definitions = [*tools("mcp", execute=may_execute), *_EXTRA]
    return [
        Tool(
            name=one["name"],
            description=one["description"],
            input_schema=one["inputSchema"],
            annotations=ToolAnnotations(
                read_only_hint=one["name"] in _READ_ONLY,
                destructive_hint=one["name"] in _DESTRUCTIVE,
                idempotent_hint=one["name"] in _IDEMPOTENT,
                open_world_hint=one["name"] in _OPEN_WORLD,
            ),
        )
        for one in definitions
    ]


ALL_NAMES: Final = frozenset(tool.name for tool in listed(may_execute=True))
