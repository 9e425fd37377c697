"""A short run of `make faults`, with a new seed each time, which it prints."""

from __future__ import annotations

import subprocess
import sys

from tests.rigs.processes import ROOT

PATIENCE = 180.0


def test_random_kills_and_pauses_lose_and_repeat_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.run", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
