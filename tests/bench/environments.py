"""The peers' Python environments, made in `.bench/` when needed, apart from our dependencies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.peer import CACHE, ROOT

REQUIREMENTS = Path(__file__).with_name("requirements")
RESTATE_SERVER = "1.7.12"
PATIENCE = 900


class NotInstalledError(Exception):
    """An environment can't be made; the message says why."""


@dataclass(frozen=True)
class Environment:
    """The interpreter and the environment variables of a peer's process."""

    python: Path
    variables: dict[str, str] = field(default_factory=dict)


def environment(name: str) -> Environment:
    """Return the environment of that name; `own` is the environment of this process.

    Raises NotInstalledError.
    """
    if name == "own":
        return Environment(Path(sys.executable))
    python = _python(name)
    return Environment(python, _restate_server() if name == "restate" else {})


def _python(name: str) -> Path:
    """Make a virtual environment, unless it exists and was made from the same requirements."""
    place, wanted = CACHE / "envs" / name, REQUIREMENTS / f"{name}.txt"
    python, mark = place / "bin" / "python", place / ".made-of"
    words = ["--requirement", str(wanted)]
    made_of = wanted.read_bytes()
    if name == "dbos":
        words += [
            "--constraint",
            str(ROOT / "constraints.txt"),
            "--editable",
            str(ROOT / "client"),
            "--editable",
            str(ROOT),
        ]
        made_of += (ROOT / "constraints.txt").read_bytes()
    digest = hashlib.sha256(made_of).hexdigest()
    if python.exists() and mark.exists() and mark.read_text() == digest:
        return python
    sys.stderr.write(f"installing {name} into {place.relative_to(ROOT)}\n")
    shutil.rmtree(place, ignore_errors=True)
    _done([sys.executable, "-m", "venv", str(place)])
    _done([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words])
    mark.write_text(digest)
    return python


def _restate_server() -> dict[str, str]:
    place = CACHE / "restate"
    package = place / "node_modules" / "@restatedev"
    found = next(package.glob("restate-server-*/bin/restate-server"), None)
    about = package / "restate-server" / "package.json"
    if found is None or json.loads(about.read_text())["version"] != RESTATE_SERVER:
        if shutil.which("npm") is None:
            raise NotInstalledError("restate-server comes by npm, which is not here")
        sys.stderr.write(f"installing restate-server into {place.relative_to(ROOT)}\n")
        place.mkdir(parents=True, exist_ok=True)
        what = f"@restatedev/restate-server@{RESTATE_SERVER}"
        _done(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(place), what])
        found = next(package.glob("restate-server-*/bin/restate-server"), None)
    if found is None:
        raise NotInstalledError("the npm package holds no restate-server for this machine")
    return {"RESTATE_SERVER": str(found)}


def _done(argv: list[str]) -> None:
    try:
        done = subprocess.run(
            argv,
            cwd=ROOT,
            env={**os.environ},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotInstalledError(f"{argv[0]}: {said[-1] if said else 'failed'}")
