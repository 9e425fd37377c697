"""`make audit` says what is wrong, and never calls well what nobody could look at."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.dependencies.audit import (
    advisories,
    canonical,
    installed,
    pins,
    spoilt,
    strangers,
    unreachable,
)

ROOT = Path(__file__).parents[2]


def test_whatever_is_asked_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {canonical(re.split(r"[^\w.-]", one)[0]) for one in asked}

    assert names <= pins((ROOT / "constraints.txt").read_text()).keys()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """One distribution, of one module."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    place = tmp_path / "lib" / version / "site-packages"
    about = place / "thing_of_ours-1.2.dist-info"
    about.mkdir(parents=True)
    (place / "thing.py").write_text("whole\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: Thing.of_ours\nVersion: 1.2\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"whole\n").digest()).rstrip(b"=").decode()
    (about / "RECORD").write_text(f"thing.py,sha256={digest},6\n{about.name}/RECORD,,\n")
    return tmp_path


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ("thing-of-ours==1.2", []),
        ("thing-of-ours==1.3", ["Thing.of_ours 1.2 is installed; pinned is 1.3"]),
        ("another==1.2", ["Thing.of_ours 1.2 is installed; pinned is none"]),
    ],
)
def test_what_is_not_pinned_so_is_named(
    environment: Path, constraints: str, words: list[str]
) -> None:
    assert list(strangers(installed(environment), pins(constraints))) == words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("whole\n", []),
        ("spoilt\n", ["Thing.of_ours: thing.py is not what was installed"]),
        (None, ["Thing.of_ours: thing.py: No such file or directory"]),
    ],
)
def test_a_file_that_is_not_what_was_installed_is_named(
    environment: Path, content: str | None, words: list[str]
) -> None:
    (module,) = environment.rglob("thing.py")
    module.unlink() if content is None else module.write_text(content)

    assert list(spoilt(installed(environment))) == words


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nobody listens, and which nobody takes meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1/query"


@pytest.fixture
def somewhere() -> Iterator[str]:
    """An address at which somebody answers, though nothing of use."""

    class Useless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(405)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Useless) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        serving.join()


def program(folder: Path, answer: object = None) -> Path:
    """What pip-audit looks like from outside: JSON, or words on stderr and a status."""
    made = folder / "pip-audit"
    says = "echo 'it broke' >&2; exit 1" if answer is None else f"echo '{json.dumps(answer)}'"
    made.write_text(f"#!/bin/sh\n{says}\n")
    made.chmod(0o755)
    return made


def test_an_advisory_database_that_is_not_reached_is_said_so(tmp_path: Path, nowhere: str) -> None:
    found = advisories(program(tmp_path), tmp_path / "constraints.txt", nowhere)

    assert found.wrong == []
    assert found.unreached == f"{nowhere}: [Errno 111] Connection refused"
    assert "http://name.invalid" in unreachable("http://name.invalid")


def test_a_program_that_fails_though_the_database_is_there_is_a_fault(
    tmp_path: Path, somewhere: str
) -> None:
    found = advisories(program(tmp_path), tmp_path / "constraints.txt", somewhere)

    assert found == (["pip-audit failed: it broke"], "")


def test_an_answer_for_none_of_them_is_no_answer(tmp_path: Path, somewhere: str) -> None:
    unknown = {"dependencies": [{"name": "one", "skip_reason": "not found"}]}

    found = advisories(program(tmp_path, unknown), tmp_path / "constraints.txt", somewhere)

    assert found.wrong == []
    assert "answered for none" in found.unreached


def test_what_is_vulnerable_and_what_was_not_looked_at_is_named(
    tmp_path: Path, somewhere: str
) -> None:
    vuln = {"id": "CVE-1", "fix_versions": ["1.3"]}
    answer = {
        "dependencies": [
            {"name": "one", "version": "1.2", "vulns": [vuln]},
            {"name": "two", "version": "2.0", "vulns": []},
            {"name": "three", "skip_reason": "not found"},
        ]
    }

    found = advisories(program(tmp_path, answer), tmp_path / "constraints.txt", somewhere)

    assert found == (["three: not found", "one 1.2: CVE-1, mended in 1.3"], "")
