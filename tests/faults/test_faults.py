"""A short run of `make faults`, with a new seed each time, which it prints."""

from __future__ import annotations

import subprocess
import sys

from tests.rigs.processes import ROOT

PATIENCE = 180.0


def test_nothing_accepted_is_lost_or_done_twice_whatever_is_killed_or_paused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.run", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
