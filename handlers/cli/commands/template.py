"""`workspaced template`: folders become versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bus import BusError, subjects
from handlers.app import Endpoints, locate
from handlers.cli.output import (
    for_people,
    local_time,
    table,
    tell,
    write_json,
    write_lines,
)
from handlers.errors import NotFoundError
from handlers.settings import Settings
from handlers.template_archive import load
from statemachine.codec import timestamp
from statemachine.ids import is_canonical
from statemachine.templates import template_id as template_id_of
from statemachine.templates import warnings


async def push(folder: Path, organization_id: str, settings: Settings) -> None:
    """Push a folder and print its ids. Raises TemplateError; then nothing was stored."""
    version, archive = load(folder, organization_id)
    for words in warnings(version.manifest):
        tell(f"warning: {words}")
    endpoints = locate(settings)
    async with endpoints.store() as store:
        await store.templates.push(organization_id, version, archive)
    await announce(endpoints)
    write_json({"template_id": version.template_id, "version_id": version.id})


async def show(organization_id: str, settings: Settings, *, as_json: bool) -> None:
    """Print an organization's templates, one a line; values of parameters are not shown."""
    async with locate(settings).store() as store:
        catalog = await store.templates.catalog(organization_id)
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
    keys = ("name", "template_id", "version_id", "pool", "description")
    _write(lines, keys, as_json=as_json, nothing="no templates; push one")


async def versions(
    template: str, organization_id: str, settings: Settings, *, as_json: bool
) -> None:
    """Print a template's versions. Raises NotFoundError."""
    template_id = (
        template.lower()
        if is_canonical(template.lower())
        else template_id_of(organization_id, template)
    )
    async with locate(settings).store() as store:
        found = await store.templates.versions(template_id)
    if not found:
        raise NotFoundError(
            f"there is no template {template}; `workspaced template list` shows all templates"
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
    _write(lines, ("version_id", "pushed_at", "active"), as_json=as_json, nothing="")


async def activate(version_id: str, settings: Settings) -> None:
    """Make a version the active one of its template. Raises NotFoundError."""
    async with locate(settings).store() as store:
        template_id = await store.templates.activate(version_id)
    if template_id is None:
        raise NotFoundError(
            f"there is no template version {version_id}; `workspaced template versions NAME` shows the versions of a template"
        )
    write_json({"template_id": template_id, "version_id": version_id})


async def announce(endpoints: Endpoints) -> None:
    """Have a worker make the pool's consumer now; without one, the next to start does."""
    try:
        async with endpoints.bus("operator") as bus:
            await bus.request(subjects.WORKER_POOLS, b"{}", timeout=5)
    except (BusError, TimeoutError) as bad:
        tell(f"stored; no worker has prepared its pool yet ({bad})")


def _write(
    lines: Sequence[Mapping[str, Any]], keys: Sequence[str], *, as_json: bool, nothing: str
) -> None:
    """Print the lines, for people as a table of `keys`."""
    if not for_people(as_json=as_json):
        for line in lines:
            write_json(line)
    elif lines:
        titles = [key.upper().replace("_", " ") for key in keys]
        write_lines(table(titles, [[_cell(key, line[key]) for key in keys] for line in lines]))
    else:
        tell(nothing)


def _cell(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "active" if value else ""
    return local_time(value) if key.endswith("_at") else str(value or "")
