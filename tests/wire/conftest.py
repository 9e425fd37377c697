"""One `workspaced up` for the whole run, and the participants of the contract for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.rigs.processes import up
from tests.rigs.world import Deployment, World, connected_world, deployment_of


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    parent = tmp_path_factory.mktemp("wire")
    with up(parent / "data") as running:
        yield deployment_of(running, parent)


@pytest.fixture
async def world(deployment: Deployment) -> AsyncIterator[World]:
    async with connected_world(deployment) as world:
        yield world
