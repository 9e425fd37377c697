"""Clusters of three real nats-servers."""

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
    """Yield one cluster for all tests of a module; they must not stop its servers."""
    with cluster_in(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
async def bus(cluster: ClusterNodes) -> AsyncIterator[Bus]:
    """Connect to the cluster as a worker."""
    async with await connect(
        cluster.nats_url, seed_file=cluster.credentials / "worker.nk", wait=True
    ) as bus:
        yield bus


@pytest.fixture
async def fleet(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[ClusterNodes, Fleet]]:
    """Yield a cluster for this test, and a fleet that stores everything on all three servers."""
    with cluster_in(tmp_path) as cluster:
        env = {"WORKSPACED_NATS_REPLICAS": "3"}
        async with fleet_on(cluster, database_url, tmp_path, env) as fleet:
            yield cluster, fleet
