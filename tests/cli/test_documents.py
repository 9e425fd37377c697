"""The programs in the documentation run exactly as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.template_folders import folder
from tests.rigs.processes import ROOT, TIMEOUT, Up, environment

FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<body>(?s:.*?))^```$", re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """Return a page's code blocks in a language."""
    text = (ROOT / "docs" / page).read_text()
    return [fence["body"] for fence in FENCE.finditer(text) if fence["language"] == language]


def test_the_caller_in_python_creates_and_stops_a_workspace(running: Up, tmp_path: Path) -> None:
    _, caller = blocks("chat-services.md", "python")  # tests/client runs the first
    pushed = running.data("template", "push", folder(tmp_path))
    seed = running.directory / "credentials/chat-service.nk"

    done = subprocess.run(
        [sys.executable, "-c", caller, running.nats, str(seed), pushed["template_id"]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    created, stopped = done.stdout.splitlines()
    assert "'created': True" in created
    assert "'stopped': True" in stopped


@pytest.mark.parametrize("page", ["templates.md", "contract.md"])
def test_the_template_can_be_pushed(running: Up, tmp_path: Path, page: str) -> None:
    (manifest,) = blocks(page, "toml")
    (tmp_path / "template.toml").write_text(manifest)
    for name in ("build.sh", "startup.sh"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)

    pushed = running.data("template", "push", tmp_path)

    assert pushed.keys() == {"template_id", "version_id"}
