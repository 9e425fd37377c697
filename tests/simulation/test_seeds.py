"""A short simulation: seeds hold, a seed repeats exactly, and broken protections are caught."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.breakages import BREAKAGES
from tests.simulation.demands import missing
from tests.simulation.troubles import CHANCES, KINDS

ROOT = Path(__file__).parents[2]
SEEDS = 150


def simulation(*flags: object) -> subprocess.CompletedProcess[str]:
    """Run the simulation in a separate process, because it replaces time and chance."""
    program = [sys.executable, "-m", "tests.simulation", *map(str, flags)]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)


def test_whatever_goes_wrong_the_promises_hold() -> None:
    done = simulation("--seeds", SEEDS)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} seeds in" in done.stdout
    for trouble in {*KINDS, *CHANCES}:
        assert re.search(rf"^ *[1-9]\d* {trouble}$", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_is_the_same_each_time(seed: int) -> None:
    first, second = simulation("--seed", seed), simulation("--seed", seed)

    assert first.stdout.splitlines()[-1].startswith(f"seed {seed}: holds, trace ")
    assert len(first.stdout.splitlines()) > 10
    assert first.stdout == second.stdout


@pytest.fixture(scope="module")
def breakages() -> subprocess.CompletedProcess[str]:
    """Take away each protection in turn, in one process."""
    return simulation("--breakages")


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_protection_that_is_taken_away_is_missed(
    name: str, breakages: subprocess.CompletedProcess[str]
) -> None:
    caught = re.findall(r"^(.+): caught by seed \d+ ", breakages.stdout, re.MULTILINE)

    assert name in caught, breakages.stdout + breakages.stderr


def test_runs_in_which_nothing_goes_wrong_prove_nothing() -> None:
    assert set(missing(Counter(), SEEDS)) == {*KINDS, *CHANCES}
