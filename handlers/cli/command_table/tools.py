"""The commands that call a tool and wait for its answer."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from handlers.cli import arguments as types
from handlers.cli.arguments import flag, positional, switch
from handlers.cli.command_table.connecting import (
    ConnectingCommand,
    chat_argument,
    organization_flag,
    parameter_flag,
)
from handlers.setting_flags import DEFAULT_OWNER_NAME

TOOL_FORMATS: Final = ("openai", "anthropic", "mcp")
"""The ways in which `tool --schema` prints tools."""


class ToolCommand(ConnectingCommand):
    """A command that calls a tool and waits for the answer."""

    finds_owner: ClassVar[bool] = True
    """Whether the owner that the chat has is used unless the flags name another."""
    call_id: str | None = flag(
        "--call-id",
        type=types.call_id,
        metavar="ID",
        help="the id of an earlier call of this chat, to get its answer again (default: a new id)",
    )
    json: bool = switch(
        "--json",
        "--quiet",
        help="print only the JSON answer on stdout, and only errors on stderr",
    )
    organization: str | None = organization_flag("the organization that the chat belongs to")
    owner: str | None = flag(
        "--owner",
        type=types.uuid,
        metavar="UUID",
        help="the id of the user who owns the chat (default: the chat's owner; of a new chat, one for all users of "
        "this command line)",
    )
    owner_name: str = flag(
        "--owner-name",
        default=DEFAULT_OWNER_NAME,
        metavar="NAME",
        help=f"the name of that user (default: {DEFAULT_OWNER_NAME})",
    )


class CallTool(ToolCommand):
    """Call a tool for a chat and wait for the answer, or print the tools for a model.

    While it waits, it shows the chat's states and the build's log on stderr. Then it prints the answer
    as JSON on stdout, and explains it on stderr. Example: workspaced tool create_workspace --chat new
    --arg template=python --arg parameters.branch=main
    """

    name = "tool"
    function = "handlers.cli.commands.tool:call_tool"
    finds_owner: ClassVar[bool] = False
    tool: str | None = positional(
        "TOOL",
        nargs="?",
        help="create_workspace, start_workspace, stop_workspace, list_templates or read_template, or a tool that "
        "runs in the workspace, such as execute",
    )
    chat: str | None = flag(
        "--chat",
        type=types.chat_id,
        metavar="UUID",
        help="the chat's id, or `new` to begin a new chat",
    )
    arg: list[tuple[str, str]] = flag(
        "--arg",
        action="append",
        type=types.key_and_value,
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the tool; parameters.NAME=VALUE sets a parameter of the template. For "
        "parameters, name, query and ids, VALUE is the text exactly as you type it, but is read as JSON "
        'if it begins with " or [. For all other arguments, VALUE is read as JSON',
    )
    args: dict[str, Any] | None = flag(
        "--args",
        type=types.json_object,
        metavar="JSON",
        help="all arguments of the tool as one JSON object; --arg adds to it",
    )
    schema: bool = switch(
        "--schema",
        help="call nothing; print the tools (or the one that is named) with descriptions and JSON Schemas for a model",
    )
    format: Literal["openai", "anthropic", "mcp"] = flag(
        "--format",
        choices=TOOL_FORMATS,
        default="anthropic",
        metavar="FORMAT",
        help=f"how --schema prints them: {', '.join(TOOL_FORMATS)} (default: anthropic)",
    )


class CreateWorkspace(ToolCommand):
    """Create a chat's workspace from a template and wait until it is ready.

    While it waits, it shows the chat's states and the build's log on stderr. Then it prints the answer
    as JSON on stdout. Exits with status 1 if there is no new workspace, or an existing one, that can be used.
    Example: workspaced create python -p branch=main
    """

    name = "create"
    function = "handlers.cli.commands.tool:create"
    template: str = positional("TEMPLATE", help="the template's name or id")
    parameters: list[tuple[str, str]] = parameter_flag()
    chat: str = flag(
        "--chat",
        type=types.chat_id,
        default="new",
        metavar="UUID",
        help="the chat's id (default: a new chat)",
    )
    preset: str | None = flag(
        "--preset", metavar="NAME|ID", help="the preset whose values apply unless -p gives others"
    )
    workspace_name: str | None = flag(
        "--name", metavar="NAME", help="the workspace's name (default: one like the template's)"
    )


class StartWorkspace(ToolCommand):
    """Start a chat's workspace and wait until it is ready.

    It shows and prints the same as `create`.
    """

    name = "start"
    function = "handlers.cli.commands.tool:start"
    chat: str = chat_argument()
    parameters: list[tuple[str, str]] = parameter_flag()


class StopWorkspace(ToolCommand):
    """Stop a chat's workspace, whose files are kept, and wait until it is stopped.

    It shows and prints the same as `create`.
    """

    name = "stop"
    function = "handlers.cli.commands.tool:stop"
    chat: str = chat_argument()
