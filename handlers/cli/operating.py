"""The commands and flags for operators: chats, workspaces, logs, settings, credentials."""

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
    listing.add_argument(
        "--state",
        choices=STATES,
        metavar="S",
        help=f"only chats in this state: {', '.join(STATES)}",
    )
    listing.add_argument(
        "--organization", type=a_uuid, metavar="UUID", help="only chats of this organization"
    )
    listing.add_argument("--owner", type=a_uuid, metavar="UUID", help="only chats of this owner")
    add_json(listing)
    show = add_command(
        verbs, "chat show", "show a chat: state, workspace, build, agent, failure, open calls"
    )
    _add_chat(show)
    add_json(show)


def _add_workspaces(commands: Any) -> None:
    verbs = add_group(
        commands, "workspace", "delete a chat's workspace, or list workspaces without a chat"
    )
    delete = add_command(
        verbs,
        "workspace delete",
        "delete a chat's workspace and wait until it is gone",
        "While it waits, it shows the chat's states and the build's log on stderr. Exits with status 1 if "
        "there is no workspace or the delete build fails.",
    )
    _add_chat(delete)
    delete.add_argument(
        "--reason", metavar="TEXT", help="the reason, which the chat's event log keeps"
    )
    delete.add_argument(
        "--json", action="store_true", help="print only JSON, and on stderr only failures"
    )
    orphans = add_command(
        verbs,
        "workspace orphans",
        "list running workspaces that belong to no chat",
        "Workers stop them after WORKSPACED_ORPHAN_GRACE seconds.",
    )
    add_json(orphans)


def _add_logs(commands: Any) -> None:
    log = add_command(
        commands,
        "log",
        "print the log of a build of a chat",
        "Prints the text on stdout as the build and the agents wrote it. With --follow it also prints new "
        "lines as they arrive, of later builds too, until the chat is settled (ready, failed, stopped or "
        "none).",
    )
    _add_chat(log)
    log.add_argument(
        "build",
        nargs="?",
        type=a_uuid,
        metavar="BUILD",
        help="the build's id (default: the newest build)",
    )
    log.add_argument(
        "--follow", action="store_true", help="print new lines until the chat is settled"
    )
    log.add_argument(
        "--json", action="store_true", help="print each message of the log as a line of JSON"
    )
    _add_event_logs(commands)


def _add_event_logs(commands: Any) -> None:
    events = add_command(
        commands,
        "events",
        "print the event log of one chat or of all chats as JSON lines",
        "--all reads the database, chat by chat, and reports its progress on stderr. Event logs show "
        "*** in place of the values of sensitive parameters.",
    )
    whose = events.add_mutually_exclusive_group(required=True)
    whose.add_argument("chat", nargs="?", type=a_uuid, metavar="CHAT", help="the chat's UUID")
    whose.add_argument("--all", action="store_true", help="the event logs of all chats")
    replay = add_command(
        commands,
        "replay",
        "check that event logs lead to the recorded states and to the database",
        "Applies each event of a log again and compares the outcome, states and version with those that "
        "the log recorded, and the result with the database's row of the chat. Prints every difference "
        "(chat, place in the log, key, recorded value, computed value) on stderr and then exits with "
        "status 1. Prints the path of states of each chat of a file, or of the one chat, on stdout. "
        "Workers may keep running meanwhile.",
    )
    what = replay.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "file",
        nargs="?",
        type=a_file,
        metavar="FILE",
        help="a file with the output of `workspaced events`; - reads stdin",
    )
    what.add_argument("--chat", type=a_uuid, metavar="UUID", help="one chat of the database")
    what.add_argument("--all", action="store_true", help="all chats of the database")
    replay.add_argument(
        "--rebuild",
        action="store_true",
        help="rewrite each snapshot that differs, if its log has no differences of its own. Sensitive "
        "values, which logs do not contain, are taken from the old snapshot; the command names those "
        "that are lost. Timers are set again when a worker starts",
    )
    replay.add_argument(
        "--dry-run",
        action="store_true",
        help="with --rebuild: print what would be rewritten, and write nothing",
    )


def _add_settings(commands: Any) -> None:
    verbs = add_group(commands, "settings", "show or change the settings that all workers use")
    change = add_command(verbs, "settings set", "change a setting; it takes effect at once")
    change.add_argument("key", metavar="KEY", help="chat_workspace_ttl or chat_template_allowlist")
    change.add_argument(
        "value",
        metavar="VALUE",
        help="chat_workspace_ttl: a duration like 2h or 1h30m, '' means never; "
        "chat_template_allowlist: template ids separated by commas, '' allows all templates",
    )
    add_command(verbs, "settings list", "print the settings as JSON")


def _add_chat(parser: Any) -> None:
    parser.add_argument("chat", type=a_uuid, metavar="CHAT", help="the chat's UUID")


def _add_migration(commands: Any) -> None:
    add_command(
        commands,
        "migrate",
        "bring the database schema to this version and grant the roles their rights",
        "Give --database-url of the database's owner if workers and gateways use database roles with fewer "
        "rights; see deploy/postgres. Prints JSON with the steps that were applied.",
    )


def _add_authorization(commands: Any) -> None:
    add_command(
        commands,
        "nats-auth",
        "print the authorization block for the configuration of your own NATS servers",
        "Creates the seeds that are missing in <data-dir>/credentials. The output contains only public "
        "keys; see deploy/nats.",
    )


def _add_credentials(commands: Any) -> None:
    verbs = add_group(
        commands, "credentials", "issue, list and revoke keys for people and services"
    )
    issue = add_command(
        verbs,
        "credentials issue",
        "issue a key for a role, for a limited time",
        "Prints JSON with the seed (a secret that workspaced does not keep), the public key (pass it to "
        "`credentials revoke`), the inbox prefix to connect with, and the time when the key expires.",
    )
    issue.add_argument(
        "--role",
        required=True,
        metavar="ROLE",
        choices=ROLES,
        help=f"the role of the key: {', '.join(ROLES)}",
    )
    issue.add_argument(
        "--chat",
        action="append",
        type=a_uuid,
        default=[],
        metavar="UUID",
        help="a chat that a frontend may follow; repeat the flag for several chats",
    )
    issue.add_argument("--pool", metavar="POOL", help="the pool that a provisioner takes jobs from")
    issue.add_argument(
        "--name",
        metavar="NAME",
        help="the name of a provisioner on the bus; for other roles a label in `credentials list`",
    )
    issue.add_argument(
        "--for",
        dest="lifetime",
        type=a_duration,
        default=3600.0,
        metavar="TIME",
        help="how long the key is valid: 90s, 1h, 1h30m (default: 1h; at most a week, for services 30 days)",
    )
    issue.add_argument(
        "--out",
        type=a_path,
        metavar="FILE",
        help="write the seed to this new file, which only you may read, instead of to stdout",
    )
    listing = add_command(verbs, "credentials list", "list the issued keys")
    listing.add_argument(
        "--all",
        action="store_true",
        help="also list keys that expired or were revoked, and keys of agents of superseded builds",
    )
    add_json(listing)
    revoke = add_command(
        verbs,
        "credentials revoke",
        "revoke a key for ever",
        "NATS closes every connection that uses the key at once and accepts no new one.",
    )
    revoke.add_argument("key", metavar="KEY", help="the public key, as `credentials list` shows it")
