"""One `workspaced up` for the run, its templates, and everybody of the contract for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.wire.running import up
from tests.wire.world import Place, World, place_of, world_at


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    parent = tmp_path_factory.mktemp("wire")
    with up(parent / "data") as running:
        yield place_of(running, parent)


@pytest.fixture
async def world(place: Place) -> AsyncIterator[World]:
    async with world_at(place) as world:
        yield world
