"""Template folders for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

QUICK = """
name = "quick"
pool = "local"

[[parameter]]
name = "greeting"
default = "hello"

[build]
start = "echo $WORKSPACED_PARAM_GREETING from the build"

[[agent]]
name = "main"
startup_script = "echo hello from the agent"
"""
FAILING = """
name = "failing"

[build]
start = "echo on my way; exit 3"
"""


def folder(parent: Path, text: str = QUICK, name: str = "template") -> Path:
    """Write a folder with this template.toml; return its path."""
    made = parent / name
    made.mkdir()
    (made / "template.toml").write_text(text)
    return made
