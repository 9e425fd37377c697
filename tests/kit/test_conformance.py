"""The provisioner of the documentation and the local one pass the conformance suite; broken ones fail at the right place."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.processes import ROOT, environment, up

FAULTS = {
    "acks-early": {"ack", "death"},
    "forgets": {"restart"},
    "ignores-cancel": {"cancel"},
    "overlaps": {"order"},
}
BUILD = "#!/bin/sh\nfor step in 1 2 3 4; do echo step $step; sleep 0.25; done\n"


PAGE = (ROOT / "docs/provisioners.md").read_text()


def documented(language: str) -> list[str]:
    """Return the blocks of the guide in a language; those without one are of commands."""
    fences = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


def begin(running: Any, parent: Path) -> str:
    """Follow the guide: make the key mine.nk and push the template; return its id."""
    (parent / "mine").mkdir()
    (manifest,) = documented("toml")
    (parent / "mine/template.toml").write_text(manifest)
    (transcript,) = documented("")
    commands = re.findall(r"^\$ workspaced (.*)$", transcript, re.MULTILINE)
    places = {"mine.nk": str(parent / "mine.nk"), "mine": str(parent / "mine")}
    issued, pushed = (
        running.data(
            *(
                places.get(word, word) if before in ("--out", "push") else word
                for before, word in pairwise(["", *shlex.split(command)])
            )
        )
        for command in commands
    )
    assert issued["seed_file"] == places["mine.nk"]
    return str(pushed["template_id"])


def words_of_the_guide(running: Any, template_id: str) -> list[str]:
    """Return the arguments with which the guide runs the suite, with the names that it leaves open."""
    (command,) = [one for one in documented("sh") if "conformance" in one]
    names = {
        "nats://127.0.0.1:4222": running.nats,
        "DATA/credentials": str(running.directory / "credentials"),
        "TEMPLATE_ID": template_id,
        "python mine.py": f"{sys.executable} mine.py",
    }
    return [names.get(word, word) for word in shlex.split(command.replace("\\\n", ""))[3:]]


def template(running: Any, parent: Path, pool: str) -> str:
    folder = parent / pool
    folder.mkdir()
    text = f'name = "{pool}"\npool = "{pool}"\n[build]\nstart = "./build.sh"\n'
    if pool == "own":
        text += '[[agent]]\nname = "main"\n'
    (folder / "template.toml").write_text(text)
    (folder / "build.sh").write_text(BUILD)
    (folder / "build.sh").chmod(0o755)
    return str(running.data("template", "push", folder)["template_id"])


async def suite(running: Any, parent: Path, pool: str, template_id: str, command: str) -> Any:
    words = ["--pool", pool, "--template", template_id, "--command", command]
    words += ["--nats-url", running.nats, "--credentials", str(running.directory / "credentials")]
    if pool == "mine":
        words = words_of_the_guide(running, template_id)
    words += ["--json", "--patience", "12"]
    if pool == "forgets":
        words += [
            "--skip",
            "death",
        ]  # its job comes again after 30 s only, since it can't hand it back
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workspaced.conformance", *words),
        cwd=parent,
        env=environment({"PYTHONPATH": f"{ROOT / 'client'}{os.pathsep}{ROOT}"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert out, err.decode()
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    failed = {name for name, check in checks.items() if check["outcome"] == "failed"}
    assert process.returncode == (1 if failed else 0)
    return failed, checks, err.decode()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run all suites side by side: each works in a pool of its own."""
    parent = tmp_path_factory.mktemp("kit")
    (parent / "mine.py").write_text(documented("python")[0])
    with up(parent / "data") as running:
        ids = {pool: template(running, parent, pool) for pool in ("own", *FAULTS)}
        ids["mine"] = begin(running, parent)
        broken = f"{sys.executable} {ROOT / 'tests/kit/broken.py'}"
        commands = {fault: f"{broken} {fault} {fault}" for fault in FAULTS}
        commands["mine"] = f"{sys.executable} mine.py"
        own = f"{sys.executable} -m handlers provisioner --pool own --name own"
        commands["own"] = f"{own} --data-dir {parent / 'own'}"

        own_key = words_of_the_guide(running, ids["mine"])
        own_key[own_key.index("--credentials") + 1] = str(running.seed_file("provisioner"))

        async def together() -> Any:
            return await asyncio.gather(
                *(suite(running, parent, pool, ids[pool], commands[pool]) for pool in commands)
            )

        refused = subprocess.run(
            [sys.executable, "-m", "workspaced.conformance", *own_key],
            cwd=parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 1
        assert "is not the operator's" in refused.stderr
        return dict(zip(commands, asyncio.run(together()), strict=True))


def test_the_documented_provisioner_passes(results: Any) -> None:
    failed, checks, printed = results["mine"]

    assert failed == set(), f"{checks}\n{printed}"


def test_the_local_provisioner_passes(results: Any) -> None:
    failed, checks, printed = results["own"]

    assert failed == set(), f"{checks}\n{printed}"
    skipped = {name for name, check in checks.items() if check["outcome"] == "skipped"}
    assert skipped <= {"progress"}  # no build takes 10 s


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_provisioner_fails_at_the_right_place(results: Any, fault: str) -> None:
    failed, checks, printed = results[fault]

    assert failed == FAULTS[fault], f"{checks}\n{printed}"
