"""docs/schemas is what the code says, and the examples in the documentation fit it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import workspaced
from jsonschema_rs import meta
from pydantic_asyncapi import v3
from workspaced.tools import Format

from bus import subjects
from docs import generate_schemas as generator
from handlers.gateway import requests
from statemachine.exec_tools import EXEC_TOOLS
from statemachine.tool_rules import TOOLS
from tests import schemas

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "docs/schemas"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>.*)\n(?P<body>(?s:.*?))^```$", re.MULTILINE)


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return generator.files()


@pytest.fixture(scope="module")
def document(made: dict[str, str]) -> Any:
    return json.loads(made["asyncapi.json"])


def test_the_checked_in_schemas_are_those_that_make_schemas_writes(made: dict[str, str]) -> None:
    found = {
        str(path.relative_to(DIRECTORY)): path.read_text() for path in DIRECTORY.rglob("*.json")
    }

    wrong = sorted(path for path in made.keys() | found.keys() if made.get(path) != found.get(path))
    assert not wrong, f"run `make schemas` and commit docs/schemas; out of date: {wrong}"


def test_each_reply_may_name_ignored_keys_unless_its_request_refuses_them(
    made: dict[str, str],
) -> None:
    for name, (body, reply) in generator.RPCS.items():
        if reply is not None:
            described = json.loads(made[f"rpcs/{name}.reply.json"])
            refuses = issubclass(body, requests.Granting)
            assert ("ignored" in described["properties"]) or refuses, name


def test_each_format_of_the_tools_for_models_is_checked_in(made: dict[str, str]) -> None:
    for name in get_args(Format):
        assert json.loads(made[f"models/{name}.json"]) == workspaced.tools(name)


def test_the_tools_of_the_client_are_those_that_make_schemas_writes() -> None:
    stored = json.loads(generator.CLIENT_TOOLS.read_text())

    assert stored == generator.client_tools(), "run `make schemas` and commit client/workspaced"
    assert [tool["name"] for tool in stored] == [*TOOLS, *EXEC_TOOLS]
    for tool in stored:
        meta.validate(tool["arguments"])
        assert tool["arguments"]["type"] == "object"


def test_make_schemas_deletes_the_schema_of_a_message_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages/obsolete.v1.json").write_text("{}")

    generator.write(tmp_path)

    assert not (tmp_path / "messages/obsolete.v1.json").exists()
    assert (tmp_path / "messages/state_changed.v1.json").exists()


def test_every_schema_is_one_of_json_schema_2020_12(made: dict[str, str]) -> None:
    for path in made.keys() - {"asyncapi.json"}:
        if path.startswith("models/"):
            continue
        schema = json.loads(made[path])

        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema", path
        assert schema["description"], path
        meta.validate(schema)
        for ref in references(schema):
            resolve(schema, ref)


def test_the_asyncapi_document_is_valid(document: Any) -> None:
    v3.AsyncAPI.model_validate(document)
    for ref in references(document):
        resolve(document, ref)


def test_the_asyncapi_document_describes_every_subject_that_others_use(document: Any) -> None:
    described = {
        re.sub(r"\{\w+\}", "*", channel["address"])
        for channel in document["channels"].values()
        if channel["address"] and ".rpc." not in channel["address"]
    }

    copies = (subjects.UI_STATE_COPY, subjects.UI_LOG_COPY, subjects.UI_EXEC_COPY)
    assert described == {
        *(subjects.IN_TOOL, subjects.IN_PROVISIONER, subjects.IN_AGENT, subjects.JOBS),
        subjects.CANCELS,
        subjects.EXECS,
        *(subjects.STATES, subjects.LOGS, subjects.RESULTS, subjects.DEADS),
        *(subjects.RESEND_PROVISIONER, subjects.RESEND_AGENT),
        *(re.sub(r"\{\{wildcard\(\d\)\}\}", "*", copy) for copy in copies),
    }


def test_every_tool_has_schemas() -> None:
    assert tuple(generator.TOOLS) == TOOLS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_json_example_in_the_documentation_is_valid(page: Path) -> None:
    for fence in FENCE.finditer(page.read_text()):
        language, _, path = fence["info"].partition(" ")
        if language == "json":
            example = json.loads(fence["body"])
            schemas.check(path or schemas.path_of(example), example)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_answer_of_a_tool_in_a_transcript_is_valid(page: Path) -> None:
    for fence in FENCE.finditer(page.read_text()):
        if not fence["info"]:
            for command, printed in transcript(fence["body"]):
                if called := re.search(r"workspaced (create|start|stop)\b", command):
                    schemas.check(f"tools/{called[1]}_workspace.result.json", printed)


def test_examples_exist_for_each_kind_of_reader() -> None:
    """So that the tests above can fail."""
    counted = {
        page.name: len(re.findall(r"^```json", page.read_text(), re.MULTILINE)) for page in PAGES
    }

    for name in ("chat-services.md", "frontends.md", "provisioners.md"):
        assert counted[name] > 0, name
    readme = FENCE.finditer((ROOT / "README.md").read_text())
    assert any(list(transcript(fence["body"])) for fence in readme if not fence["info"])


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        ("tools/create_workspace.args.json", {}, '"template_id" is a required property'),
        ("rpcs/cancel.reply.json", {"canceled": True, "cancelled": True}, "'cancelled' was unexp"),
        ("rpcs/get_chat.body.json", {"chat_id": "<chat_id>"}, '"<chat_id>" does not match'),
    ],
)
def test_a_wrong_message_does_not_fit(path: str, value: Any, wrong: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(wrong)):
        schemas.check(path, value)


def transcript(text: str) -> Iterator[tuple[str, Any]]:
    """The JSON objects that commands print, each with the last command before it."""
    command, lines = "", text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("$ "):
            command = line
        elif line.startswith("{"):
            printed, _ = json.JSONDecoder().raw_decode("\n".join(lines[number:]))
            yield command, printed


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def resolve(document: Any, ref: str) -> Any:
    assert ref.startswith("#/"), ref
    found = document
    for key in ref.removeprefix("#/").split("/"):
        found = found[key]
    return found
