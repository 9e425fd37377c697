"""The commands for settings, the database, NATS's configuration, the demonstration and completion."""

from __future__ import annotations

from typing import Final

from handlers.cli.arguments import Command, positional, switch
from handlers.cli.command_table.connecting import ConnectingCommand, json_switch

_SETTINGS: Final = "chat_workspace_ttl, chat_workspace_activity_bump, stopped_workspace_retention or chat_template_allowlist"


class ChangeSetting(ConnectingCommand):
    """Change a setting; it takes effect at once."""

    name = "settings set"
    function = "handlers.cli.commands.settings:change_setting"
    key: str = positional("KEY", help=_SETTINGS)
    value: str = positional(
        "VALUE",
        help="chat_workspace_ttl, chat_workspace_activity_bump, stopped_workspace_retention: a duration like 2h, "
        "1h30m or 30d, '' means never; chat_template_allowlist: template ids separated by commas, '' allows all "
        "templates",
    )


class UnsetSetting(ConnectingCommand):
    """Bring the default of a setting back; it takes effect at once."""

    name = "settings unset"
    function = "handlers.cli.commands.settings:unset_setting"
    key: str = positional("KEY", help=_SETTINGS)


class ListSettings(ConnectingCommand):
    """List the settings that all workers use."""

    name = "settings list"
    function = "handlers.cli.commands.settings:list_settings"
    json: bool = json_switch()


class Migrate(ConnectingCommand):
    """Bring the database schema to this version and grant the roles their rights.

    Give --database-url of the database's owner if workers and gateways use database roles with fewer
    rights; see deploy/postgres. Prints JSON with the steps that were applied.
    """

    name = "migrate"
    function = "handlers.cli.commands.local:migrate_database"


class PrintNatsAuthorization(ConnectingCommand):
    """Print the authorization block for the configuration of your own NATS servers.

    Creates the seeds that are missing in <data-dir>/credentials. The output contains only public keys;
    see deploy/nats.
    """

    name = "nats-auth"
    function = "handlers.cli.commands.local:print_nats_authorization"


class Demo(Command):
    """Demonstrate workspaced on real servers, in a temporary directory.

    Creates, stops and starts a workspace, lets a build fail, replays the event log, and ends with a
    table that compares how soon the caller knew of each state with polling every 2 s.
    """

    name = "demo"
    function = "handlers.demo.demo:demo"
    keep: bool = switch("--keep", help="do not delete the temporary directory at the end")


class PrintCompletion(Command):
    """Print a script that completes commands and flags in your shell.

    Add `eval "$(workspaced completion bash)"` to ~/.bashrc. For zsh, write the output of
    `workspaced completion zsh` to a file _workspaced in a folder of your $fpath; for fish, that of
    `workspaced completion fish` to ~/.config/fish/completions/workspaced.fish.
    """

    name = "completion"
    function = "handlers.cli.commands.local:print_completion"
    reads_settings = False
    shell: str = positional("SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
