"""The commands about event logs."""

from __future__ import annotations

from pathlib import Path

from handlers.cli import arguments as types
from handlers.cli.arguments import flag, positional, switch
from handlers.cli.command_table.connecting import ConnectingCommand


class ExportEvents(ConnectingCommand):
    """Print the event log of one chat or of all chats as JSON lines.

    --all reads the database, chat by chat, and reports its progress on stderr. Event logs show *** in
    place of the values of sensitive parameters.
    """

    name = "events"
    function = "handlers.cli.commands.chat:export_events"
    one_of = ("chat", "all")
    chat: str | None = positional("CHAT", nargs="?", type=types.known_chat, help="the chat's UUID")
    all: bool = switch("--all", help="the event logs of all chats")


class Replay(ConnectingCommand):
    """Check that event logs lead to the recorded states and to the database.

    Applies each event of a log again and compares the outcome, states and version with those that the
    log recorded, and the result with the database's row of the chat. Prints every difference (chat,
    place in the log, key, recorded value, computed value) on stderr and then exits with status 1.
    Prints the path of states of each chat of a file, or of the one chat, on stdout. Workers may keep
    running meanwhile.
    """

    name = "replay"
    function = "handlers.cli.commands.replay:replay"
    one_of = ("file", "chat", "all")
    file: str | None = positional(
        "FILE",
        nargs="?",
        type=types.file_name,
        help="a file with the output of `workspaced events`; - reads stdin",
    )
    chat: str | None = flag(
        "--chat", type=types.uuid, metavar="UUID", help="one chat of the database"
    )
    all: bool = switch("--all", help="all chats of the database")
    rebuild: bool = switch(
        "--rebuild",
        help="rewrite each snapshot that differs, if its log has no differences of its own. Sensitive "
        "values, which logs do not contain, are taken from the old snapshot; the command names those "
        "that are lost. Timers are set again when a worker starts",
    )
    dry_run: bool = switch(
        "--dry-run", help="with --rebuild: print what would be rewritten, and write nothing"
    )


class Report(ConnectingCommand):
    """Write an HTML file about event logs: how long phases took, what failed, and the slowest builds.

    The file holds everything that it shows: it opens from disk, and loads nothing.
    """

    name = "report"
    function = "handlers.cli.commands.report:report"
    one_of = ("file", "all")
    file: str | None = positional(
        "FILE",
        nargs="?",
        type=types.file_name,
        help="a file with the output of `workspaced events`; - reads stdin",
    )
    all: bool = switch("--all", help="the event logs of all chats of the database")
    out: Path = flag(
        "--out",
        type=types.path,
        default=Path("report.html"),
        metavar="FILE",
        help="the file to write (default: report.html)",
    )
