"""Measures the start time of workspaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.peer import ROOT

COMMAND = Path(sys.executable).with_name("workspaced")


def cold(starts: int) -> dict[str, list[float]]:
    """Return seconds until `up` is ready, with new and used directories, and for `--help`.

    `--help` is timed at least three times, but not if `starts` is 0.
    """
    found: dict[str, list[float]] = {"new": [], "used": [], "help": []}
    with tempfile.TemporaryDirectory(prefix="bench-cold-") as parent:
        for number in range(starts):
            directory = Path(parent) / str(number)
            found["new"].append(up(directory))
            found["used"].append(up(directory))
    for _ in range(max(3, starts) if starts else 0):
        began = time.monotonic()
        subprocess.run([COMMAND, "--help"], stdout=subprocess.DEVNULL, env=plain(), check=True)
        found["help"].append(time.monotonic() - began)
    return {name: [round(seconds, 3) for seconds in values] for name, values in found.items()}


def plain() -> dict[str, str]:
    """Return the environment without variables that would configure workspaced."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WORKSPACED_")}


def up(directory: Path) -> float:
    """Start `up` on a data directory and stop it; return the seconds until it was ready."""
    began = time.monotonic()
    process = subprocess.Popen(
        [COMMAND, "up", "--data-dir", directory],
        cwd=ROOT,
        env=plain(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.monotonic() - began
        if not line or not json.loads(line)["ready"]:
            raise RuntimeError(f"`workspaced up` did not become ready on {directory}")
        return took
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
