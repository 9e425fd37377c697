"""The words of who looks after it: chats, workspaces, logs, settings."""

from __future__ import annotations

from typing import Any

from handlers.cli.words import STATES, a_uuid, add_command, add_group, add_json


def add_operating(commands: Any) -> None:
    """Add the commands for operators."""
    _add_chats(commands)
    _add_workspaces(commands)
    _add_logs(commands)
    _add_settings(commands)


def _add_chats(commands: Any) -> None:
    verbs = add_group(commands, "chat", "list chats, or show one")
    listing = add_command(verbs, "chat list", "list chats with their state, workspace and agent")
    listing.add_argument("--state", choices=STATES, metavar="S", help=", ".join(STATES))
    listing.add_argument("--organization", type=a_uuid, metavar="UUID", help="only of this one")
    listing.add_argument("--owner", type=a_uuid, metavar="UUID", help="only of this one")
    add_json(listing)
    show = add_command(
        verbs, "chat show", "show a chat: state, workspace, build, agent, failure, open calls"
    )
    _add_chat(show)
    add_json(show)


def _add_workspaces(commands: Any) -> None:
    verbs = add_group(commands, "workspace", "delete a workspace, or list those without a chat")
    delete = add_command(
        verbs,
        "workspace delete",
        "delete a chat's workspace and wait until it is gone",
        "Shows states and build log on stderr meanwhile. Status 1 when there is nothing to delete, "
        "or the delete build fails.",
    )
    _add_chat(delete)
    delete.add_argument("--reason", metavar="TEXT", help="why; kept in the chat's event log")
    delete.add_argument(
        "--json", action="store_true", help="show nothing on stderr but failures; JSON on stdout"
    )
    orphans = add_command(
        verbs,
        "workspace orphans",
        "list workspaces that run though no chat has them",
        "The workers stop them after a grace time.",
    )
    add_json(orphans)


def _add_logs(commands: Any) -> None:
    log = add_command(
        commands,
        "log",
        "print the log of a chat's build",
        "Text as it was written, on stdout. With --follow new lines are printed as they come, also "
        "those of later builds, until the chat is settled.",
    )
    _add_chat(log)
    log.add_argument("build", nargs="?", type=a_uuid, metavar="BUILD", help="default: the newest")
    log.add_argument("--follow", action="store_true", help="go on until the chat is settled")
    log.add_argument("--json", action="store_true", help="each piece of log as a line of JSON")
    events = add_command(commands, "events", "print a chat's event log as JSON lines")
    _add_chat(events)
    replay = add_command(
        commands,
        "replay",
        "fold an event log and print the path of states",
        "Exits with 1 when the log folds to something else than it recorded, and says where.",
    )
    replay.add_argument(
        "file", metavar="FILE", help="what `workspaced events` printed; - for stdin"
    )


def _add_settings(commands: Any) -> None:
    verbs = add_group(commands, "settings", "show or change the settings all workers use")
    change = add_command(verbs, "settings set", "change a setting; workers see it at once")
    change.add_argument("key", metavar="KEY", help="chat_workspace_ttl or chat_template_allowlist")
    change.add_argument(
        "value", metavar="VALUE", help="2h or 1h30m; template ids with commas between"
    )
    add_command(verbs, "settings list", "print the settings as JSON")


def _add_chat(parser: Any) -> None:
    parser.add_argument("chat", type=a_uuid, metavar="CHAT", help="the chat's UUID")
