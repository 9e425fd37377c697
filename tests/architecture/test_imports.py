"""The import contracts in pyproject.toml catch the imports that they forbid."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("statemachine", "bus", "handlers")
LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources at a place where they may be spoilt."""
    place = tmp_path_factory.mktemp("breach")
    shutil.copy(ROOT / "pyproject.toml", place)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copytree(ROOT / "client/workspaced", place / "workspaced")
    return place


def lint(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache", "--no-logo"], cwd=place, capture_output=True, text=True, check=False
    )


def test_the_contracts_are_kept(copy: Path) -> None:
    found = lint(copy)

    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("statemachine/machine.py", "import bus.streams", "statemachine imports"),
        ("statemachine/store/__init__.py", "import handlers.settings", "statemachine imports"),
        ("bus/subjects.py", "import statemachine.states", "bus imports"),
        ("workspaced/models.py", "import bus.subjects", "The client imports no"),
        ("statemachine/machine.py", "import asyncio", "The core does no"),
        ("statemachine/machine.py", "import nats.errors", "The core does no"),
        ("statemachine/machine.py", "import statemachine.store", "Only handlers import the store"),
        (
            "handlers/worker/__init__.py",
            "import handlers.gateway.gateway",
            "Packages of handlers import",
        ),
        (
            "handlers/agent/__init__.py",
            "import handlers.provisioner",
            "Packages of handlers import",
        ),
        (
            "handlers/access/permissions.py",
            "import handlers.embedded.ports",
            "Packages of handlers import",
        ),
    ],
)
def test_a_breach_is_caught(copy: Path, module: str, statement: str, contract: str) -> None:
    spoilt = copy / module
    before = spoilt.read_text()
    spoilt.write_text(f"{before}\n{statement}\n")
    try:
        found = lint(copy)
    finally:
        spoilt.write_text(before)

    broken = [line for line in found.stdout.splitlines() if " BROKEN" in line]
    assert found.returncode == 1
    assert any(line.startswith(contract) for line in broken), found.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_the_import_name_is_ours_alone(name: str) -> None:
    """`python-statemachine` on PyPI also installs a top-level `statemachine`."""
    owners = set(packages_distributions().get(name, ["workspaced"]))

    assert owners == {"workspaced"}, f"uninstall {owners - {'workspaced'}}: it overwrites {name}/"
