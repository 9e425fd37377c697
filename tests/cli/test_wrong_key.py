"""A key that is let in, for a command that another role may give: what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wire.running import Up

CHAT = "8a804acf-6f16-4fe3-8544-2c2e56a0edad"


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
        (("workspace", "delete", CHAT), "chat-service"),
        (("tool", "list_templates", "--chat", CHAT, "--json"), "chat-service"),
    ],
)
def test_the_role_whose_key_is_needed_is_named_in_one_line(
    running: Up, frontends: Path, words: tuple[str, ...], role: str
) -> None:
    refused = running.run(*words, "--credentials", frontends)

    command = words[0] if words[0] in ("events", "tool") else " ".join(words[:2])
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr == (
        f"workspaced: {frontends} is let in, but may not do this: "
        f"`{command}` needs a key of role {role}\n"
    )


def test_the_key_of_another_static_role_is_none_either(running: Up) -> None:
    """Where its answers come to is asked of the server first, which refuses that as well."""
    file = running.seed_file("provisioner")

    refused = running.run("workspace", "delete", CHAT, "--credentials", file)

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "`workspace delete` needs a key of role chat-service" in refused.stderr
