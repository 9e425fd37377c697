"""The commands `template …`."""

from __future__ import annotations

from pathlib import Path

from handlers.cli import arguments as types
from handlers.cli.arguments import positional
from handlers.cli.command_table.connecting import ConnectingCommand, json_switch, organization_flag


class PushTemplate(ConnectingCommand):
    """Store a folder as a new version of its template and activate it.

    Prints JSON with template_id and version_id. If the folder has not changed, the version stays the
    same. To begin with, five lines are enough in its template.toml: name = "hello"; pool = "local"; [build];
    start = "echo hello"; and, for a workspace that takes commands, [[agent]] with name = "main" below it.
    """

    name = "template push"
    function = "handlers.cli.commands.template:push"
    folder: Path = positional("DIR", type=types.path, help="the folder that contains template.toml")
    organization: str | None = organization_flag("the organization that owns the template")


class ListTemplates(ConnectingCommand):
    """List an organization's templates."""

    name = "template list"
    function = "handlers.cli.commands.template:list_templates"
    organization: str | None = organization_flag("the organization that owns the templates")
    json: bool = json_switch()


class ListVersions(ConnectingCommand):
    """List the versions of a template, oldest first."""

    name = "template versions"
    function = "handlers.cli.commands.template:list_versions"
    template: str = positional("NAME|ID", help="the template's name or id")
    organization: str | None = organization_flag("the organization that owns the template")
    json: bool = json_switch()


class ActivateVersion(ConnectingCommand):
    """Activate an earlier version of a template.

    Prints JSON with template_id and version_id. Existing workspaces keep the version that they have.
    """

    name = "template activate"
    function = "handlers.cli.commands.template:activate"
    version: str = positional(
        "VERSION_ID", type=types.uuid, help="the id of the version, as `template versions` lists it"
    )
