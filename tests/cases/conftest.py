"""One `workspaced up` for all cases; each case gets its own participants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.rigs.processes import Up, up
from tests.rigs.world import Deployment, World, connected_world, deployment_of


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("cases") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def place(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return deployment_of(running, tmp_path_factory.mktemp("templates"))


@pytest.fixture
async def world(place: Deployment) -> AsyncIterator[World]:
    async with connected_world(place) as world:
        yield world
