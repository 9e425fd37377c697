"""The commands that tell operators what runs, what waits, what went wrong, and what was thrown away."""

from __future__ import annotations

from handlers.cli import arguments as types
from handlers.cli.arguments import flag, positional, switch
from handlers.cli.command_table.connecting import ConnectingCommand, chat_argument, json_switch


class ShowStatus(ConnectingCommand):
    """Show what runs, what waits, and what is wrong.

    Shows servers, workers, gateways, pools with their queues, streams, waiting calls and dead letters, then each problem
    with what to do about it. Works without a gateway and a worker, and as far as possible without NATS or the database.
    Exits with status 1 if something is wrong.
    """

    name = "status"
    function = "handlers.cli.commands.status:show_status"
    json: bool = json_switch()


class ShowTop(ConnectingCommand):
    """Show all chats on the whole terminal, as they change: sort, filter, and open one.

    It needs the extra workspaced[terminal]. Keys: s sorts by another column, / filters, Enter opens a chat with its log,
    Escape goes back, q ends it.
    """

    name = "top"
    function = "handlers.cli.commands.top:top"


class ListCalls(ConnectingCommand):
    """List the calls that wait for their answers, and what each waits for; the oldest first."""

    name = "calls list"
    function = "handlers.cli.commands.status:list_calls"
    chat: str | None = flag(
        "--chat", type=types.uuid, metavar="UUID", help="only calls of this chat"
    )
    json: bool = json_switch()


class ShowBuildTimes(ConnectingCommand):
    """Show how long builds took, by template."""

    name = "build times"
    function = "handlers.cli.commands.status:show_build_times"
    period: float = flag(
        "--since",
        type=types.seconds,
        default=7 * 24 * 3600.0,
        metavar="TIME",
        help="how long ago the period begins: 2h, 7d, 30d (default: 7d)",
    )
    json: bool = json_switch()


class ShowHistory(ConnectingCommand):
    """Tell the history of a chat: who asked for what, how long each phase took, and why it failed."""

    name = "history"
    function = "handlers.cli.commands.history:show_history"
    chat: str = chat_argument()
    json: bool = json_switch()


class ListDead(ConnectingCommand):
    """List the messages that could not be accepted, and why; the newest first."""

    name = "dead list"
    function = "handlers.cli.commands.dead:list_dead"
    json: bool = json_switch()


class ShowDead(ConnectingCommand):
    """Show a dead letter: the message, why it could not be accepted, and what to do."""

    name = "dead show"
    function = "handlers.cli.commands.dead:show_dead"
    letter: int = positional(
        "NUMBER", type=types.positive, help="its number, as `dead list` shows it"
    )
    json: bool = json_switch()


class ReplayDead(ConnectingCommand):
    """Publish dead letters again, unchanged, and remove them when NATS has stored them.

    Each goes to the subject on which its sender published it, with its own id, so that it has an effect only once. The
    command publishes with an operator's key. It refuses what is no event, what is too large, and calls, whose callers
    were told that they failed.
    """

    name = "dead replay"
    function = "handlers.cli.commands.dead:replay_dead"
    letters: list[int] = positional(
        "NUMBER", nargs="+", type=types.positive, help="their numbers, as `dead list` shows them"
    )


class DropDead(ConnectingCommand):
    """Delete dead letters for ever. Asks before it does so, unless --yes is given."""

    name = "dead drop"
    function = "handlers.cli.commands.dead:drop_dead"
    letters: list[int] = positional(
        "NUMBER", nargs="*", type=types.positive, help="their numbers, as `dead list` shows them"
    )
    all: bool = switch("--all", help="all that there are now")
    yes: bool = switch("--yes", help="do not ask")
