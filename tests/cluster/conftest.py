"""ClusterNodess of three real nats-servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bus import Bus
from bus.jetstream import connect
from tests.cluster.nodes import ClusterNodes, cluster_in
from tests.rigs.fleet import Fleet, fleet_on


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    """One for all tests of a module, which leave its servers alone."""
    with cluster_in(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
async def bus(cluster: ClusterNodes) -> AsyncIterator[Bus]:
    """A worker's connection to it."""
    async with await connect(
        cluster.nats_url, seed_file=cluster.credentials / "worker.nk", wait=True
    ) as bus:
        yield bus


@pytest.fixture
async def fleet(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[ClusterNodes, Fleet]]:
    """A cluster of the test's own, and roles that keep everything on all three servers."""
    with cluster_in(tmp_path) as cluster:
        env = {"WORKSPACED_NATS_REPLICAS": "3"}
        async with fleet_on(cluster, database_url, tmp_path, env) as fleet:
            yield cluster, fleet
