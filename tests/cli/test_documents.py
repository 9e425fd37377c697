"""The programs in the documentation run exactly as they are printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from workspaced.owner import DEFAULT_ORGANIZATION

from tests.cli.template_folders import QUICK, folder
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, TIMEOUT, Up, environment

FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<body>(?s:.*?))^```$", re.MULTILINE)


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


@pytest.fixture
def shell(running: Up, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script as a reader pastes it: `workspaced` and `.venv/bin/workspaced` are this program."""
    program = tmp_path / ".venv/bin/workspaced"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m handlers "$@"\n')
    program.chmod(0o755)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")

    def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        place = {
            "WORKSPACED_DATA_DIR": str(running.directory),
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=tmp_path,
            env=environment(place | variables),
            capture_output=True,
            text=True,
            timeout=2 * TIMEOUT,
            check=False,
        )

    return run


def test_the_first_use_in_the_readme(
    shell: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """`up` runs already; `c74db0b2-…` stands for the chat that `create` began."""
    page = (ROOT / "README.md").read_text()
    (first_use,) = [
        fence["body"] for fence in FENCE.finditer(page) if "workspaced up &" in fence["body"]
    ]
    chat = ""
    commands = [line[2:] for line in first_use.splitlines() if line.startswith("$ ")]
    assert len(commands) == 6
    for command in commands[1:]:
        done = shell(command.replace("c74db0b2-…", chat))
        assert done.returncode == 0, (command, done.stderr)
        if " create " in command:
            chat = re.findall(r"^chat (\S+),", done.stderr, re.MULTILINE)[0]
            shown = first_use[first_use.index("{\n") :]
            expected, _ = json.JSONDecoder().raw_decode(shown)
            assert json.loads(done.stdout).keys() == expected.keys()
            assert "  building" in done.stderr
            assert "making the virtual environment" in done.stderr
        if " replay " in command:
            path = first_use.splitlines()[-2].split("  ", 1)[1]
            assert path in done.stdout
            assert "all agree" in done.stdout + done.stderr


def test_the_commands_of_the_guide_for_templates(
    tmp_path: Path, shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """`up` runs already; CHAT stands for the chat that the command began."""
    (manifest,) = blocks("templates.md", "toml")
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello/template.toml").write_text(manifest)
    (script,) = blocks("templates.md", "")
    lines = [line for line in script.splitlines() if "workspaced up" not in line]

    made = shell("\n".join(lines[:-1]))
    assert made.returncode == 0, made.stderr
    chat = re.findall(r"^chat (\S+),", made.stderr, re.MULTILINE)[0]
    log = shell(lines[-1].replace("CHAT", chat))

    assert log.returncode == 0, log.stderr
    for words in ("building branch main", "starting in "):
        assert words in log.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_commands_of_the_guide_for_http(
    running: Up, tmp_path: Path, shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    running.data("template", "push", folder(tmp_path, QUICK.replace("quick", "python")))
    page = (ROOT / "docs/http.md").read_text()
    issue, call, answer, follow, *more = [
        dedent(block) for block in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    ]
    assert not more
    token = json.loads(shell(issue).stdout)["token"]
    variables = {
        "TOKEN": token,
        "URL": running.http,
        "CHAT": new_id(),
        "OWNER": new_id(),
        "ORGANIZATION": DEFAULT_ORGANIZATION,
    }

    created = json.loads(shell(call, **variables).stdout)
    again = json.loads(shell(answer, **variables).stdout)

    assert created["result"]["created"] is True
    assert again["result"] == created["result"]
    streamed = shell(f"{follow.strip()} --max-time 3 || test $? = 28", **variables)
    assert "event: state" in streamed.stdout


RUN = {
    "README.md": {"mermaid": "the diagram", "": "this module; figures of the demo; make targets"},
    "agents.md": {"python": "tests/agent", "json": "test_schemas", "": "a request as JSON"},
    "chat-services.md": {"python": "tests/client, this module", "json": "test_schemas"},
    "contract.md": {"toml": "this module", "json": "test_schemas", "": "subjects and forms"},
    "frontends.md": {"python": "tests/client", "sh": "tests/examples", "json": "test_schemas"},
    "mcp.md": {"": "an answer as JSON"},
    "operators.md": {"": "tests/architecture/test_documents.py, tests/cli/test_restore.py"},
    "provisioners.md": {
        **dict.fromkeys(("python", "sh", "toml", ""), "tests/kit/test_conformance.py"),
        "json": "test_schemas",
    },
    "templates.md": {"toml": "this module", "": "this module"},
}
"""Where the blocks of each page are run or checked, by their language."""


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str
)
def test_every_block_of_a_page_is_run_or_checked_somewhere(page: Path) -> None:
    languages = re.findall(r"^```(\w*).*\n(?s:.*?)^```$", page.read_text(), re.MULTILINE)

    assert set(languages) <= RUN.get(page.name, {}).keys()
