"""An agent's configuration survives any path, and a file that code in the workspace wrote is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.publishing.agent_files import AgentConfig, config_path, read_config, write_config


def test_a_directory_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    config = AgentConfig(
        chat_id="chat",
        workspace_id="workspace",
        build_id="build",
        agent_id="agent",
        name="é",
        nats_url="nats://somewhere",
        directory=Path("/d\udcff"),
        secrets=("one", "two"),
    )

    write_config(tmp_path, config)

    assert read_config(tmp_path) == config


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b"{}", b""])
def test_a_file_that_is_no_configuration_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    config_path(tmp_path).write_bytes(content)

    with pytest.raises(ValueError, match=r"."):
        read_config(tmp_path)
