"""The commands about chats, their builds and their workspaces."""

from __future__ import annotations

from typing import Final

from handlers.cli import arguments as types
from handlers.cli.arguments import flag, positional, selector, switch
from handlers.cli.command_table.connecting import ConnectingCommand, chat_argument, json_switch

STATES: Final = (
    *("none", "building", "agent_connecting", "scripts_running"),
    *("ready", "failed", "stopping", "stopped"),
)
"""The states of a chat on the wire; the module that defines them is slow to import."""


class ListChats(ConnectingCommand):
    """List chats with their state, workspace and agent."""

    name = "chat list"
    function = "handlers.cli.commands.chat:list_chats"
    state: str | None = flag(
        "--state",
        choices=STATES,
        metavar="S",
        help=f"only chats in this state: {', '.join(STATES)}",
    )
    organization: str | None = flag(
        "--organization",
        type=types.uuid,
        metavar="UUID",
        help="only chats of this organization (WORKSPACED_ORGANIZATION; default: all organizations)",
    )
    owner: str | None = flag(
        "--owner", type=types.uuid, metavar="UUID", help="only chats of this owner"
    )
    json: bool = json_switch()


class ShowChat(ConnectingCommand):
    """Show a chat: state, workspace, build, agent, failure, open calls."""

    name = "chat show"
    function = "handlers.cli.commands.chat:show_chat"
    chat: str = chat_argument()
    json: bool = json_switch()


class KeepWorkspace(ConnectingCommand):
    """Keep a chat's workspace running for a while, even if nobody uses it.

    Prints when it is stopped if nobody uses it until then. Exits with status 1 if it does not run, or has no
    lifetime.
    """

    name = "chat keep"
    function = "handlers.cli.commands.chat:keep"
    chat: str = chat_argument()
    lifetime: float = flag(
        "--for",
        type=types.seconds,
        required=True,
        metavar="TIME",
        help="how long from now: 90s, 2h, 1h30m, 3d; at most 7 days",
    )
    json: bool = json_switch()


class CancelBuild(ConnectingCommand):
    """Cancel the build of a chat's workspace that is in flight.

    A build that no provisioner has begun ends at once; the provisioner of any other is asked to end
    it. `chat show` tells what comes of it.
    """

    name = "build cancel"
    function = "handlers.cli.commands.chat:cancel_build"
    chat: str = chat_argument()
    build: str | None = flag(
        "--build", type=types.uuid, metavar="UUID", help="only if this is the build in flight"
    )
    reason: str | None = flag(
        "--reason", metavar="TEXT", help="the reason, which the failure's message repeats"
    )


class DeleteWorkspace(ConnectingCommand):
    """Delete a chat's workspace and wait until it is gone, or request the deletion of others.

    While it waits, it shows the chat's states and the build's log on stderr. Exits with status 1 if
    there is no workspace or the delete build fails. With --workspace or --all it deletes workspaces that belong to no
    chat (`workspaced workspace orphans`): workers try again if a delete build fails, and the command does not wait.
    """

    name = "workspace delete"
    function = "handlers.cli.commands.workspace:delete"
    chat: str | None = positional("CHAT", type=types.known_chat, nargs="?", help="the chat's UUID")
    workspace: str | None = selector(
        "--workspace",
        type=types.uuid,
        metavar="UUID",
        help="the workspace with this id, whether it belongs to a chat or not",
    )
    all: bool = switch("--all", help="all workspaces that belong to no chat")
    older_than: float | None = selector(
        "--older-than",
        type=types.seconds,
        metavar="TIME",
        help="with --all: only those that have been in their state for so long: 12h, 30d",
    )
    dry_run: bool = switch(
        "--dry-run",
        help="with --workspace or --all: print what would be deleted, and delete nothing",
    )
    reason: str | None = flag(
        "--reason", metavar="TEXT", help="the reason, which the chat's event log keeps"
    )
    json: bool = switch("--json", help="print only JSON, and on stderr only failures")


class ListOrphans(ConnectingCommand):
    """List all workspaces that exist and belong to no chat, also replaced ones.

    Workers stop those that run after WORKSPACED_ORPHAN_GRACE seconds, and delete replaced ones that have been
    stopped for as long as the setting stopped_workspace_retention says.
    """

    name = "workspace orphans"
    function = "handlers.cli.commands.workspace:list_orphans"
    json: bool = switch(
        "--json", help="print JSON, as this command always does when stdout is not a terminal"
    )


class WatchChat(ConnectingCommand):
    """Follow a chat until Ctrl-C: its states and the log of its builds as they come.

    On a terminal the last line shows the phase, how long it lasts, how long it may last, and the last line of the log.
    """

    name = "watch"
    function = "handlers.cli.commands.watch:watch"
    chat: str = chat_argument()
    json: bool = json_switch()


class ShowLog(ConnectingCommand):
    """Print the log of a build of a chat.

    Prints the text on stdout as the build and the agents wrote it. With --follow it also prints new
    lines as they arrive, of later builds too, until the chat is settled (ready, failed, stopped or
    none).
    """

    name = "log"
    function = "handlers.cli.commands.log:show_log"
    chat: str = chat_argument()
    build: str | None = positional(
        "BUILD", nargs="?", type=types.uuid, help="the build's id (default: the newest build)"
    )
    follow: bool = switch("-f", "--follow", help="print new lines until the chat is settled")
    json: bool = switch("--json", help="print each message of the log as a line of JSON")
