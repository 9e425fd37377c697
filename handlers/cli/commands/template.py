"""`workspaced template`: stores folders as versions of templates, and lists both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from bus import BusError, subjects
from handlers.app import Endpoints, locate
from handlers.cli.command_table.templates import (
    ActivateVersion,
    ListTemplates,
    ListVersions,
    PushTemplate,
)
from handlers.cli.output import for_people, local_time, note, write_json, write_table
from handlers.errors import NotFoundError
from handlers.settings import Settings, organization_of
from handlers.template_archive import load
from statemachine.codec import timestamp
from statemachine.naming import is_canonical
from statemachine.templates import template_id, warnings

_NO_TEMPLATES: Final = (
    "no templates; `workspaced template push DIR` stores one, and its --help shows a small one"
)
_TEMPLATE_COLUMNS: Final = ("name", "template_id", "version_id", "pool", "description")
_VERSION_COLUMNS: Final = ("version_id", "pushed_at", "active")


async def push(command: PushTemplate, settings: Settings) -> None:
    """Push a folder and print the ids. Raises TemplateError, and then stores nothing."""
    version, archive = load(command.folder, organization_of(settings))
    for warning in warnings(version.manifest):
        note(f"warning: {warning}")
    endpoints = locate(settings)
    async with endpoints.store() as store:
        await store.templates.push(organization_of(settings), version, archive)
    await prepare_pools(endpoints)
    write_json({"template_id": version.template_id, "version_id": version.id})


async def list_templates(command: ListTemplates, settings: Settings) -> None:
    """Print an organization's templates, without the values of parameters."""
    async with locate(settings).store() as store:
        catalog = await store.templates.catalog(organization_of(settings))
    found = sorted(catalog.templates.values(), key=lambda template: template.name)
    lines = [
        {
            "template_id": template.id,
            "version_id": template.active.id,
            "name": template.name,
            "display_name": template.active.manifest.display_name,
            "description": template.active.manifest.description,
            "pool": template.active.manifest.pool,
            "agents_allowed": template.active.manifest.agents_allowed,
        }
        for template in found
    ]
    _write(lines, _TEMPLATE_COLUMNS, as_json=command.json, none=_NO_TEMPLATES)


async def list_versions(command: ListVersions, settings: Settings) -> None:
    """Print a template's versions. Raises NotFoundError."""
    name = command.template
    is_id = is_canonical(name.lower())
    wanted = name.lower() if is_id else template_id(organization_of(settings), name)
    async with locate(settings).store() as store:
        found = await store.templates.versions(wanted)
    if not found:
        raise NotFoundError(
            f"there is no template {name}; `workspaced template list` shows all templates"
        )
    lines = [
        {
            "version_id": version.version_id,
            "pushed_at": timestamp(version.pushed_at),
            "active": version.active,
            "size": version.size,
        }
        for version in found
    ]
    _write(lines, _VERSION_COLUMNS, as_json=command.json, none="no versions")


async def activate(command: ActivateVersion, settings: Settings) -> None:
    """Make a version the active one of its template. Raises NotFoundError."""
    async with locate(settings).store() as store:
        found = await store.templates.activate(command.version)
    if found is None:
        raise NotFoundError(
            f"there is no template version {command.version}; `workspaced template versions NAME` "
            "shows the versions of a template"
        )
    write_json({"template_id": found, "version_id": command.version})


async def prepare_pools(endpoints: Endpoints) -> None:
    """Let a worker create the consumers of new pools now, not when the first build needs one."""
    try:
        async with endpoints.bus("operator") as bus:
            await bus.request(subjects.WORKER_POOLS, b"{}", timeout=5)
    except (BusError, TimeoutError) as error:
        note(f"stored; no worker has prepared its pool yet ({error})")


def _write(
    lines: Iterable[Mapping[str, Any]], columns: tuple[str, ...], *, as_json: bool, none: str
) -> None:
    """Print JSON lines, or for people a table of some columns."""
    if not for_people(as_json=as_json):
        for line in lines:
            write_json(line)
    elif rows := [[_cell(name, line[name]) for name in columns] for line in lines]:
        write_table([name.upper().replace("_", " ") for name in columns], rows)
    else:
        note(none)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "active" if value else ""
    return local_time(value) if name.endswith("_at") else str(value or "")
