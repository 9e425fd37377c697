"""`workspaced template`: folders become versions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bus import BusError
from handlers.app import Place, locate
from handlers.packing import load
from handlers.settings import Settings
from handlers.worker.worker import POOLS_SUBJECT


async def push(folder: Path, organization_id: str, settings: Settings) -> None:
    """Push a folder and print its ids. Raises TemplateError; then nothing was stored."""
    version, archive = load(folder, organization_id)
    place = locate(settings)
    async with place.store() as store:
        await store.push(organization_id, version, archive)
    await announce(place)
    sys.stdout.write(
        json.dumps({"template_id": version.template_id, "version_id": version.id}) + "\n"
    )


async def show(organization_id: str, settings: Settings) -> None:
    """Print an organization's templates, one JSON object a line."""
    async with locate(settings).store() as store:
        catalog = await store.templates(organization_id)
    for template in sorted(catalog.templates.values(), key=lambda template: template.name):
        manifest = template.active.manifest
        line = {
            "template_id": template.id,
            "version_id": template.active.id,
            "name": template.name,
            "display_name": manifest.display_name,
            "description": manifest.description,
            "pool": manifest.pool,
            "agents_allowed": manifest.agents_allowed,
        }
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


async def announce(place: Place) -> None:
    """Have a worker make the pool's consumer now; without one, the next to start does."""
    try:
        async with place.bus("operator") as bus:
            await bus.request(POOLS_SUBJECT, b"{}", timeout=5)
    except (BusError, TimeoutError) as bad:
        sys.stderr.write(f"stored; no worker has prepared its pool yet ({bad})\n")
