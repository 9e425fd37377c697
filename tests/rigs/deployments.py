"""Fixtures of one `workspaced up` for all tests of a folder, and participants of the contract for each test.

The `conftest.py` of a folder imports them, and so gets an `up` of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.rigs.processes import Up, up
from tests.rigs.world import Deployment, World, connected_world, deployment_of


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("up") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def deployment(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return deployment_of(running, tmp_path_factory.mktemp("templates"))


@pytest.fixture
async def world(deployment: Deployment) -> AsyncIterator[World]:
    async with connected_world(deployment) as world:
        yield world
