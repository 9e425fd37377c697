"""Clusters of three real nats-servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bus import Bus
from bus.jetstream import connect
from tests.cluster.nodes import Cluster, cluster_in
from tests.rigs.fleet import Fleet


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all tests of a module, which leave its servers alone."""
    with cluster_in(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
async def bus(cluster: Cluster) -> AsyncIterator[Bus]:
    """A worker's connection to it."""
    async with await connect(
        cluster.url, seed_file=cluster.credentials / "worker.nk", wait=True
    ) as bus:
        yield bus


@pytest.fixture
async def fleet(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[Cluster, Fleet]]:
    """A cluster of the test's own, and roles that keep everything on all three servers."""
    with cluster_in(tmp_path) as cluster:
        fleet = Fleet(cluster.url, cluster.credentials, database_url, tmp_path)
        fleet.env["WORKSPACED_NATS_REPLICAS"] = "3"
        try:
            yield cluster, fleet
        finally:
            await fleet.end_all()
