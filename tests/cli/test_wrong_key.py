"""The error of a command whose key belongs to another role."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.processes import Up

CHAT = "8a804acf-6f16-4fe3-8544-2c2e56a0edad"
OTHER_CHAT = "9a804acf-6f16-4fe3-8544-2c2e56a0edad"


@pytest.fixture(scope="module")
def frontends(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "f.nk"
    running.data("credentials", "issue", "--role", "frontend", "--chat", CHAT, "--out", file)
    return file


@pytest.mark.parametrize(
    ("words", "role"),
    [
        (("chat", "list"), "operator"),
        (("events", CHAT), "operator"),
        (("credentials", "list"), "operator"),
        (("workspace", "delete", OTHER_CHAT), "chat-service"),
        (("tool", "list_templates", "--chat", CHAT, "--json"), "chat-service"),
    ],
)
def test_the_error_is_one_line_that_names_the_role_to_use(
    running: Up, frontends: Path, words: tuple[str, ...], role: str
) -> None:
    refused = running.run(*words, "--credentials", frontends)

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith(f"workspaced: the key in {frontends} does not permit this (")
    assert refused.stderr.endswith(f"): use a key of role {role} with --credentials\n")


def test_the_key_of_another_static_role_is_denied_too(running: Up) -> None:
    """NATS already denies the subscription to the command's inbox."""
    file = running.seed_file("provisioner")

    refused = running.run("workspace", "delete", CHAT, "--credentials", file)

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "use a key of role chat-service" in refused.stderr
