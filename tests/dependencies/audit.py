"""`make audit`: what is installed is what was pinned, unchanged, and no advisory speaks of it.

Status 0: all of that holds. 1: something is wrong, and named. 3: nothing is wrong as far as can be told
without the advisory database, which could not be reached.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ADVISORIES = "https://api.osv.dev/v1/query"
WITHOUT_ADVISORIES = 3
UNPINNED = {"pip", "setuptools", "workspaced"}
"""What comes with Python's environments, and ourselves."""


class Found(NamedTuple):
    """What the advisory database said."""

    wrong: list[str]
    unreached: str = ""
    """Why it said nothing; empty when it did."""


def canonical(name: str) -> str:
    """Return a distribution's name as every index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Read constraints; each must name one version."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def installed(environment: Path) -> list[Distribution]:
    """Find what an environment holds."""
    place = {"base": str(environment), "platbase": str(environment)}
    paths = {sysconfig.get_path(kind, vars=place) for kind in ("purelib", "platlib")}
    return list(distributions(path=sorted(paths)))


def strangers(found: list[Distribution], pinned: dict[str, str]) -> Iterator[str]:
    """Name what is installed in another version than the pinned one, or not pinned at all."""
    for one in found:
        if (name := canonical(one.name)) not in UNPINNED and pinned.get(name) != one.version:
            yield f"{one.name} {one.version} is installed; pinned is {pinned.get(name, 'none')}"


def spoilt(found: list[Distribution]) -> Iterator[str]:
    """Name files that are not what their wheel brought."""
    for one in found:
        for file in one.files or ():
            if file.hash is None:
                continue
            try:
                content = Path(str(file.locate())).read_bytes()
            except OSError as bad:
                yield f"{one.name}: {file}: {bad.strerror}"
                continue
            digest = hashlib.new(file.hash.mode, content).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                yield f"{one.name}: {file} is not what was installed"


def inconsistent(environment: Path) -> Iterator[str]:
    """Name what lacks a dependency, or has one that does not fit."""
    command = [environment / "bin/python", "-m", "pip", "check", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield from done.stdout.splitlines()


def withdrawn(pip: list[str | Path], constraints: Path) -> Iterator[str]:
    """Name what the package index does not have, or has withdrawn."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report")
        done = subprocess.run(
            [*pip, *words, report, "--requirement", constraints],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            yield from re.findall(r"^ERROR: (.*)", done.stderr, re.MULTILINE) or [done.stderr]
            return
        for one in json.loads(report.read_bytes())["install"]:
            if one["is_yanked"]:
                about = one["metadata"]
                yield f"{about['name']} {about['version']} was withdrawn by its makers"


def advisories(pip_audit: Path, constraints: Path, url: str) -> Found:
    """Ask for what is known of the pinned versions."""
    words = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
    done = subprocess.run(
        [pip_audit, "-r", constraints, *words, "-s", "osv", "--osv-url", url],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = unreachable(url)
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Found([], why) if why else Found([f"pip-audit failed: {last}"])
    if not any("vulns" in one for one in answers):
        return Found([], f"{url} answered for none of them")
    wrong = [f"{one['name']}: {one['skip_reason']}" for one in answers if "vulns" not in one]
    for one in answers:
        for vuln in one.get("vulns", ()):
            fixed = ", ".join(vuln["fix_versions"]) or "none yet"
            wrong.append(f"{one['name']} {one['version']}: {vuln['id']}, mended in {fixed}")
    return Found(wrong)


def unreachable(url: str) -> str:
    """Say why nobody answers at `url`; nothing when somebody does, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as bad:
        return f"{url}: {getattr(bad, 'reason', bad)}"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Check everything; name what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, default=ROOT / ".audit", help="where pip-audit is")
    parser.add_argument("--advisories", default=ADVISORIES, metavar="URL")
    flags = parser.parse_args(argv)
    constraints = ROOT / "constraints.txt"
    pinned, wrong = pins(constraints.read_text()), list[str]()
    for environment in (Path(sys.prefix), flags.tools):
        found = installed(environment)
        wrong += [*strangers(found, pinned), *spoilt(found), *inconsistent(environment)]
        sys.stdout.write(f"{environment}: {len(found)} distributions looked at, file by file\n")
    wrong += withdrawn([flags.tools / "bin/python", "-m", "pip"], constraints)
    sys.stdout.write(f"{constraints.name}: {len(pinned)} versions looked up in the package index\n")
    said = advisories(flags.tools / "bin/pip-audit", constraints, flags.advisories)
    wrong += said.wrong
    for one in wrong:
        sys.stdout.write(f"WRONG  {one}\n")
    if said.unreached:
        sys.stdout.write(
            f"No advisory was asked for: {said.unreached}\n"
            "Known vulnerabilities were NOT looked for; everything else was.\n"
        )
    elif not wrong:
        sys.stdout.write(f"Nothing is wrong, and no advisory at {flags.advisories} speaks of it.\n")
    return 1 if wrong else WITHOUT_ADVISORIES if said.unreached else 0


if __name__ == "__main__":
    sys.exit(main())
