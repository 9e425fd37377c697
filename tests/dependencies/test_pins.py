"""Every dependency is pinned to one version, and every pin to the digests of its files."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]


def canonical(name: str) -> str:
    """Normalize a distribution's name as PEP 503 does."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    """Read `name==version` lines; each line must pin one version."""
    lines = (line.removesuffix("\\").strip() for line in (ROOT / file).read_text().splitlines())
    pinned = [line for line in lines if line and not line.startswith(("#", "--hash="))]
    return {canonical(name): version for name, version in (one.split("==") for one in pinned)}


def test_every_dependency_in_pyproject_is_pinned() -> None:
    server, client = (
        tomllib.loads((ROOT / file).read_text())["project"]
        for file in ("pyproject.toml", "client/pyproject.toml")
    )
    required = [
        *client["dependencies"],
        *server["dependencies"],
        *chain(*server["optional-dependencies"].values()),
    ]
    names = {canonical(re.split(r"[^\w.-]", one)[0]) for one in required} - {client["name"]}

    assert names <= pins("constraints.txt").keys()


def test_every_pin_has_digests_in_hashes_txt() -> None:
    assert pins("hashes.txt") == pins("constraints.txt"), "run `make hashes`"

    _, *entries = re.split(r"^\S+==", (ROOT / "hashes.txt").read_text(), flags=re.MULTILINE)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
