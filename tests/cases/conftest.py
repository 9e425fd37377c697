"""One `workspaced up` for all cases, and every party of the contract for each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.wire.running import Up, up
from tests.wire.world import Place, World, place_of, world_at


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("cases") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def place(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return place_of(running, tmp_path_factory.mktemp("templates"))


@pytest.fixture
async def world(place: Place) -> AsyncIterator[World]:
    async with world_at(place) as world:
        yield world
