"""The words of who looks after it: chats, workspaces, logs, settings."""

from __future__ import annotations

from typing import Any

from handlers.cli.words import (
    ROLES,
    STATES,
    a_duration,
    a_file,
    a_path,
    a_uuid,
    add_command,
    add_group,
    add_json,
)


def add_operating(commands: Any) -> None:
    """Add the commands for operators."""
    _add_chats(commands)
    _add_workspaces(commands)
    _add_logs(commands)
    _add_settings(commands)
    _add_migration(commands)
    _add_authorization(commands)
    _add_credentials(commands)


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
    _add_event_logs(commands)


def _add_event_logs(commands: Any) -> None:
    events = add_command(
        commands,
        "events",
        "print the event log of a chat, or of all, as JSON lines",
        "All are read from the database, a page at a time, chat by chat; how far it is stands on "
        "stderr. Values of sensitive parameters are hidden in every log.",
    )
    whose = events.add_mutually_exclusive_group(required=True)
    whose.add_argument("chat", nargs="?", type=a_uuid, metavar="CHAT", help="the chat's UUID")
    whose.add_argument("--all", action="store_true", help="every chat's")
    replay = add_command(
        commands,
        "replay",
        "fold event logs and say whether they add up",
        "Each entry must fold to the outcome, states and version that it recorded, and the log as a "
        "whole to what the database keeps of the chat. Says what differs (chat, place in the log, "
        "key, what was recorded, what it folds to) on stderr and exits with 1. The path of states "
        "of a file's chats, or of the one chat, stands on stdout. Works beside running workers.",
    )
    what = replay.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "file",
        nargs="?",
        type=a_file,
        metavar="FILE",
        help="what `workspaced events` printed; - for stdin",
    )
    what.add_argument("--chat", type=a_uuid, metavar="UUID", help="that chat of the database")
    what.add_argument("--all", action="store_true", help="every chat of the database")
    replay.add_argument(
        "--rebuild",
        action="store_true",
        help="write the snapshots that differ anew, from logs that fold to what they recorded. What "
        "a log hides (sensitive values) is taken from the old snapshot, or said to be lost. "
        "Timers are set again when a worker starts",
    )
    replay.add_argument(
        "--dry-run", action="store_true", help="with --rebuild: say what it would do, write nothing"
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


def _add_migration(commands: Any) -> None:
    add_command(
        commands,
        "migrate",
        "bring the database to this version, and give its roles their rights",
        "With the URL of the database's owner, where workers and gateways have roles of their own that "
        "may not do it; see deploy/postgres. Prints JSON with the steps that were applied.",
    )


def _add_authorization(commands: Any) -> None:
    add_command(
        commands,
        "nats-auth",
        "print who may connect to NATS, for the configuration of servers of your own",
        "Makes the seeds <data-dir>/credentials/*.nk that are not there yet. What it prints names "
        "their public keys only; see deploy/nats.",
    )


def _add_credentials(commands: Any) -> None:
    verbs = add_group(
        commands, "credentials", "issue keys for people and services, list them, take them back"
    )
    issue = add_command(
        verbs,
        "credentials issue",
        "issue a key for a role, for a while",
        "Prints JSON with the seed (a secret: it stands nowhere else), the public key to revoke it "
        "by, the inbox prefix to connect with, and when it ends.",
    )
    issue.add_argument(
        "--role",
        required=True,
        metavar="ROLE",
        choices=ROLES,
        help=", ".join(ROLES),
    )
    issue.add_argument(
        "--chat",
        action="append",
        type=a_uuid,
        default=[],
        metavar="UUID",
        help="a chat that a frontend follows; may be given several times",
    )
    issue.add_argument("--pool", metavar="POOL", help="whose jobs a provisioner takes")
    issue.add_argument(
        "--name", metavar="NAME", help="what a provisioner is called on the bus; else a label"
    )
    issue.add_argument(
        "--for",
        dest="lifetime",
        type=a_duration,
        default=3600.0,
        metavar="TIME",
        help="how long it is good: 90s, 1h, 1h30m (default: 1h; a week at most, 30 days for services)",
    )
    issue.add_argument(
        "--out",
        type=a_path,
        metavar="FILE",
        help="write the seed there, for you only, and not to stdout",
    )
    listing = add_command(
        verbs, "credentials list", "list keys that were issued; those of the static roles are files"
    )
    listing.add_argument(
        "--all",
        action="store_true",
        help="also what has ended, was revoked, or is an agent's of a superseded build",
    )
    add_json(listing)
    revoke = add_command(
        verbs,
        "credentials revoke",
        "take a key back, for ever",
        "Who is connected with it is cut off at once, and not let in again.",
    )
    revoke.add_argument("key", metavar="KEY", help="its public key, as `credentials list` shows it")
