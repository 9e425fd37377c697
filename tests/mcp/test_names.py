"""Names of chats, calls and tasks."""

from __future__ import annotations

import pytest
from mcp.shared.exceptions import MCPError
from workspaced import Answer

from handlers.mcp.caller import local_caller
from handlers.mcp.calls import call_id_of, outcome
from handlers.mcp.tasks import Task, TaskIds
from tests.rigs.messages import new_id

ORGANIZATION = "8fcadcc8-3807-5396-9df9-e5afb8474e7d"


def chat(name: str, owner_name: str = "ada") -> str:
    return local_caller(name, organization=ORGANIZATION, owner=None, owner_name=owner_name).chat_id


def test_a_name_stands_for_the_same_chat_each_time_and_a_uuid_for_itself() -> None:
    assert chat("/home/ada/project") == chat("/home/ada/project")
    assert chat("/home/ada/project") != chat("/home/ada/other")
    assert chat("/home/ada/project") != chat("/home/ada/project", "bob")
    known = new_id()
    assert chat(known.upper()) == known


def test_the_id_of_a_tool_call_is_the_call_id_or_its_digest() -> None:
    assert call_id_of("toolu_01-A") == "toolu_01-A"
    assert call_id_of(None) is None
    assert call_id_of("") is None
    hashed = call_id_of("a/b")
    assert hashed is not None
    assert hashed == call_id_of("a/b")
    assert call_id_of(hashed) == hashed
    assert call_id_of("x" * 129) != "x" * 129


def test_a_task_id_is_of_use_in_its_chat_with_its_key_only() -> None:
    here, ids = new_id(), TaskIds("the seed")
    task = Task(here, "call", "create_workspace", 1.5)
    text = ids.write(task)

    assert ids.read(text, here) == task
    for forged, at in ((text, new_id()), (text[:-1], here), ("", here), ("é", here), ("A", here)):
        with pytest.raises(MCPError):
            ids.read(forged, at)
    with pytest.raises(MCPError):
        TaskIds("another seed").read(text, here)


@pytest.mark.parametrize(
    ("tool", "is_error", "result", "step"),
    [
        ("create_workspace", False, {"status": "stopped"}, "call start_workspace"),
        (
            "create_workspace",
            False,
            {"error": "x", "validations": []},
            "call create_workspace with corrected values",
        ),
        ("start_workspace", True, {"error": "use create_workspace"}, "call create_workspace"),
        ("execute", True, {"error": "x", "next_step": "start_workspace"}, "start_workspace"),
        ("execute", True, {"error": "x", "next_step": None}, None),
        ("create_workspace", False, {"created": True}, None),
    ],
)
def test_results_name_the_next_step(
    tool: str, is_error: bool, result: dict[str, object], step: str | None
) -> None:
    given = outcome(Answer(call_id="1", tool=tool, is_error=is_error, result=result))

    assert given.get("next_step") == step
    assert given.failed is (is_error or "error" in result)
