"""Three nats-servers on loopback, run with the configuration that operators use."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.rigs.processes import ROOT, TIMEOUT, run

NATS_SERVER = Path(sys.executable).parent / "nats-server"
DEPLOYED = ROOT / "deploy" / "nats"


class Node:
    """One server; a restart uses the same ports and the same store."""

    def __init__(self, number: int, folder: Path, ports: dict[str, int], env: dict[str, str]):
        self.name = f"workspaced-{number}"
        self.url = f"nats://127.0.0.1:{ports['LISTEN']}"
        self._command: list[str | Path] = [NATS_SERVER, "-c", folder / f"node-{number}.conf"]
        self._command += ["-l", folder / f"{self.name}.log"]
        listen = {f"NATS_{name}": f"127.0.0.1:{port}" for name, port in ports.items()}
        store = {"NATS_STORE": str(folder / self.name)}
        self._env = {**os.environ, **env, **listen, **store}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._env)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT)
            self._process = None


class ClusterNodes:
    """The nodes, and the credentials that `workspaced nats-auth` made for them."""

    def __init__(self, folder: Path) -> None:
        self.credentials = folder / "data" / "credentials"
        for file in DEPLOYED.glob("*.conf"):
            shutil.copy(file, folder)
        made = run("nats-auth", "--data-dir", folder / "data")
        assert made.returncode == 0, made.stderr
        (folder / "authorization.conf").write_text(made.stdout)
        kinds = ("LISTEN", "WEBSOCKET_LISTEN", "CLUSTER_LISTEN")
        ports = [dict(zip(kinds, _free(len(kinds)), strict=True)) for _ in range(3)]
        routes = {
            f"NATS_ROUTE_{number}": f"nats://127.0.0.1:{of['CLUSTER_LISTEN']}"
            for number, of in enumerate(ports, 1)
        }
        self.nodes = [Node(number, folder, of, routes) for number, of in enumerate(ports, 1)]

    @property
    def nats_url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        return next(node for node in self.nodes if node.name == name)


@contextmanager
def cluster_in(folder: Path) -> Iterator[ClusterNodes]:
    """Start three nodes; kill them at the end."""
    cluster = ClusterNodes(folder)
    with ExitStack() as ending:
        for node in cluster.nodes:
            node.start()
            ending.callback(node.kill)
        yield cluster


def _free(count: int) -> list[int]:
    with ExitStack() as held:
        found = [
            held.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            for _ in range(count)
        ]
        return [one.getsockname()[1] for one in found]
