"""Every command of `workspaced`: its name, help, arguments, and the function that runs it.

A new command is a class in the module of its group, an entry in `COMMANDS`, and its function in `handlers.cli.commands`.
Nothing here imports anything slow, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
from typing import Final

from handlers.cli.arguments import Command, make_parser
from handlers.cli.command_table.access import (
    IssueCredential,
    IssueToken,
    ListCredentials,
    ListTokens,
    OpenPage,
    RevokeCredential,
    RevokeToken,
)
from handlers.cli.command_table.administration import (
    ChangeSetting,
    Demo,
    ListSettings,
    Migrate,
    PrintCompletion,
    PrintNatsAuthorization,
    UnsetSetting,
)
from handlers.cli.command_table.chats import (
    CancelBuild,
    DeleteWorkspace,
    KeepWorkspace,
    ListChats,
    ListOrphans,
    ShowChat,
    ShowLog,
    WatchChat,
)
from handlers.cli.command_table.event_logs import ExportEvents, Replay, Report
from handlers.cli.command_table.operations import (
    DropDead,
    ListCalls,
    ListDead,
    ReplayDead,
    ShowBuildTimes,
    ShowDead,
    ShowHistory,
    ShowStatus,
    ShowTop,
)
from handlers.cli.command_table.processes import Copy, Execute, KillProcess, ListProcesses
from handlers.cli.command_table.servers import (
    RunAgent,
    RunGateway,
    RunMcp,
    RunProvisioner,
    RunWorker,
    Up,
)
from handlers.cli.command_table.templates import (
    ActivateVersion,
    ListTemplates,
    ListVersions,
    PushTemplate,
)
from handlers.cli.command_table.tools import (
    CallTool,
    CreateWorkspace,
    StartWorkspace,
    StopWorkspace,
)

_GROUPS: Final = {
    "template": "push or list templates, or activate a version",
    "chat": "list chats, or show one",
    "build": "cancel a build, or show how long builds take",
    "calls": "list the calls that wait",
    "dead": "list, show, replay or drop messages that could not be accepted",
    "workspace": "delete a chat's workspace, or list workspaces that belong to no chat",
    "settings": "show or change the settings that all workers use",
    "credentials": "issue, list and revoke keys for people and services",
    "token": "issue, list and revoke bearer tokens for the HTTP interface",
}
"""The first words that several commands share."""

COMMANDS: Final[tuple[type[Command], ...]] = (
    *(Up, RunWorker, RunGateway, RunProvisioner, RunMcp, RunAgent),
    *(CreateWorkspace, StartWorkspace, StopWorkspace, CallTool),
    *(Execute, ListProcesses, KillProcess, Copy),
    *(PushTemplate, ListTemplates, ListVersions, ActivateVersion),
    *(ListChats, ShowChat, KeepWorkspace),
    *(CancelBuild, ShowBuildTimes),
    *(DeleteWorkspace, ListOrphans),
    *(WatchChat, ShowLog, ShowHistory, ExportEvents, Replay, Report),
    *(ShowStatus, ShowTop, ListCalls),
    *(ListDead, ShowDead, ReplayDead, DropDead),
    *(ChangeSetting, UnsetSetting, ListSettings),
    *(Migrate, PrintNatsAuthorization),
    *(IssueCredential, ListCredentials, RevokeCredential),
    *(IssueToken, ListTokens, RevokeToken),
    OpenPage,
    *(Demo, PrintCompletion),
)
"""All commands, in the order of `workspaced --help`."""


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of `workspaced`; see `make_parser` for what it returns."""
    return make_parser(
        COMMANDS,
        _GROUPS,
        description="Development workspaces for AI chats: a persisted state machine on NATS and "
        "PostgreSQL. Begin with `workspaced demo`, or `workspaced up` and `workspaced create`.",
        epilog="A WORKSPACED_ variable in the environment can replace the flag that names it. If both "
        "are given, the flag takes precedence. `workspaced COMMAND --help` describes a command. "
        "`workspaced completion --help` explains completion in your shell.",
    )
