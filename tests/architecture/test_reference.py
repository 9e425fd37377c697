"""docs/reference is what the code says, and complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate_reference as generator
from docs.generate_schemas import CHANNELS, RPCS, TOOLS
from handlers.access.permissions import PERMISSIONS
from statemachine.exec_tools import EXEC_TOOLS

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "docs/reference"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return generator.pages()


def test_the_checked_in_pages_are_those_that_make_reference_writes(made: dict[str, str]) -> None:
    found = {path.name: path.read_text() for path in DIRECTORY.glob("*.md")}

    wrong = sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))
    assert not wrong, f"run `make reference` and commit docs/reference; out of date: {wrong}"


def test_every_rpc_is_on_a_page(made: dict[str, str]) -> None:
    described = {
        name for text in made.values() for name in re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    }

    assert described == {*RPCS, *TOOLS}


def test_every_subject_and_event_of_others_is_on_a_page(made: dict[str, str]) -> None:
    text = "".join(made.values())
    for channel in CHANNELS:
        if channel.name != "dead_letters":  # operators read them; their page points to the contract
            assert f"`{channel.address}`" in text or channel.name == "agent_facts", channel
            for name in channel.messages:
                assert f"`workspaced.{name}.v1`" in text or f"`{name}`" in text, name


def test_every_service_error_has_a_meaning() -> None:
    sources = [path.read_text() for path in (ROOT / "handlers/gateway").glob("*.py")]
    codes = {
        int(code) for text in sources for code in re.findall(r"ServiceError\(\s*(\d{3})", text)
    }

    assert codes <= generator.ERRORS.keys()


def test_agents_see_every_tool_that_they_are_asked_for(made: dict[str, str]) -> None:
    for tool in EXEC_TOOLS:
        assert f"### `{tool}`" in made["agent.md"]


def test_a_chat_service_sees_exactly_the_rpcs_that_its_key_permits(made: dict[str, str]) -> None:
    permitted = {
        name.removeprefix("workspaced.rpc.")
        for name in PERMISSIONS["chat-service"].publish
        if name.startswith("workspaced.rpc.")
    }
    rpcs = made["chat-service.md"].partition("## Rpcs")[2]

    assert set(re.findall(r"^### `(\w+)`$", rpcs, re.MULTILINE)) == permitted
