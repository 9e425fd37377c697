"""The commands that run something in a workspace, or copy its files."""

from __future__ import annotations

from typing import Final

from handlers.cli import arguments as types
from handlers.cli.arguments import flag, positional, switch
from handlers.cli.command_table.connecting import ConnectingCommand, chat_argument, json_switch

SIGNALS: Final = ("INT", "TERM", "KILL", "HUP", "QUIT", "USR1", "USR2")
"""The signals that a command in a workspace can get."""


class Execute(ConnectingCommand):
    """Run a command in a chat's workspace.

    Its output is printed as it comes, it gets this command's standard input, and its exit status is this
    command's, or 128 + the number of the signal that ended it. Ctrl-C sends it INT. A second Ctrl-C detaches: it goes
    on, and --attach comes back to it. It may run for as long as the workspace does.
    """

    name = "exec"
    function = "handlers.cli.commands.processes:run"
    rest = "words"
    chat: str = chat_argument()
    words: list[str] = positional(
        "COMMAND", nargs="*", help="after --: a line for /bin/sh, or a program and its arguments"
    )
    terminal: bool = switch(
        "-t", help="run it in a terminal, of this one's size; each key goes to it, also Ctrl-C"
    )
    attach: str | None = flag(
        "--attach", metavar="ID", help="follow the process with this id instead, from the beginning"
    )


class ListProcesses(ConnectingCommand):
    """List the commands that run or ran in a chat's workspace."""

    name = "ps"
    function = "handlers.cli.commands.processes:list_processes"
    chat: str = chat_argument()
    json: bool = json_switch()


class KillProcess(ConnectingCommand):
    """Send a signal to a command in a chat's workspace, and to all that it has started."""

    name = "kill"
    function = "handlers.cli.commands.processes:kill"
    chat: str = chat_argument()
    process: str = positional("ID", help="the process's id, as `ps` lists it")
    signal: str = flag(
        "--signal",
        type=types.signal_name,
        choices=SIGNALS,
        default="TERM",
        metavar="NAME",
        help=f"one of {', '.join(SIGNALS)}, also with SIG or as a number (default: TERM)",
    )


class Copy(ConnectingCommand):
    """Copy a file or a directory out of a chat's workspace, or into it.

    One of the two paths is CHAT:PATH. A relative PATH begins at the directory of the workspace's agent. If TARGET is a
    directory, the copy is made in it. Executable files stay executable. Links in a directory are left out, but one that
    leads from this machine's directory to a file is copied as that file.
    """

    name = "cp"
    function = "handlers.cli.commands.copy:copy"
    source: str = positional("SOURCE", help="CHAT:PATH, or a local path")
    target: str = positional("TARGET", help="a local path, or CHAT:PATH")
