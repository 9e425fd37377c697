"""Tool rules of list_templates (L) and read_template (T); the table is in `test_tool_rules`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from statemachine.calls import Policy
from tests.unit.driver import ORG, PYTHON, Desk, catalog, template
from tests.unit.facts import uid
from tests.unit.jobs import is_error


def plain(name: str, more: str = "") -> str:
    return f'name = "{name}"\n{more}\n[build]\nstart = "true"\n'


def listed(desk: Desk, **args: Any) -> dict[str, Any]:
    answer = desk.ask("list_templates", **args)
    assert answer is not None
    assert not answer.is_error
    return answer.result


def names(desk: Desk, **args: Any) -> list[str]:
    return [found["name"] for found in listed(desk, **args)["templates"]]


def test_l1_the_allowed_templates_of_the_organization_are_listed_by_name() -> None:
    hidden = template(plain("kept", "agents_allowed = false"))
    foreign = template(plain("foreign"), organization=uid("another"))
    desk = Desk(
        known=catalog(template(plain("zsh")), template(plain("Go")), hidden, foreign, PYTHON)
    )

    result = listed(desk)

    assert [found["name"] for found in result["templates"]] == ["Go", "python", "zsh"]
    assert result["templates"][1] == {
        "id": PYTHON.id,
        "name": "python",
        "organization_id": ORG,
        "display_name": "Python",
        "description": "A repository with a virtual environment",
    }
    assert set(result["templates"][0]) == {"id", "name", "organization_id"}
    del result["templates"]
    assert result == {"count": 3, "page": 1, "total_pages": 1, "total_count": 3}


def test_l1_templates_that_are_not_on_the_allowlist_are_not_listed() -> None:
    policy = Policy(allowlist=frozenset((PYTHON.id,)))
    desk = Desk(known=catalog(template(plain("go")), PYTHON), policy=policy)

    assert names(desk) == ["python"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("PYTH", ["python"]),
        ("virtual ENV", ["python"]),
        ("go", ["go"]),
        ("%", []),
        ("p.thon", []),
        ("_", ["under-score"]),
        ("", ["go", "python", "under-score"]),
        (None, ["go", "python", "under-score"]),
    ],
)
def test_l2_a_query_matches_part_of_name_display_name_or_description(
    query: str | None, found: list[str]
) -> None:
    scored = template(plain("under-score", 'display_name = "a_b"'))

    assert names(Desk(known=catalog(PYTHON, template(plain("go")), scored)), query=query) == found


def test_l3_a_page_has_ten_templates() -> None:
    desk = Desk(known=catalog(*(template(plain(f"t{n:02}")) for n in range(21))))

    first, last, past = listed(desk), listed(desk, page=3), listed(desk, page=4)

    assert [found["name"] for found in first["templates"]] == [f"t{n:02}" for n in range(10)]
    assert (first["count"], first["total_pages"], first["total_count"]) == (10, 3, 21)
    assert (last["count"], last["page"]) == (1, 3)
    assert (past["templates"], past["count"], past["page"], past["total_count"]) == ([], 0, 4, 21)
    for page in (0, -3, None):
        assert listed(desk, page=page)["page"] == 1


def test_l3_without_templates_there_is_one_empty_page() -> None:
    assert listed(Desk(known=catalog())) == {
        "templates": [],
        "count": 0,
        "page": 1,
        "total_pages": 1,
        "total_count": 0,
    }


FULL = """
name = "full"
display_name = "Full"
[[parameter]]
name = "branch"
display_name = "Branch"
description = "Which"
default = "main"
options = [{ name = "Main", value = "main", description = "d" }, { name = "Next", value = "next" }]
validation_regex = "^[a-z-]+$"
[[parameter]]
name = "cpus"
type = "number"
default = 2
mutable = false
validation_min = 1
validation_max = 2.5
[[parameter]]
name = "token"
required = true
sensitive = true
[[parameter]]
name = "flags"
type = "list(string)"
default = ["a", "b"]
[[parameter]]
name = "fast"
type = "bool"
default = true
[[preset]]
name = "quick"
default = true
description = "p"
parameters = { cpus = 1, token = "secret" }
[build]
start = "true"
"""


def test_t1_a_template_is_read_with_its_parameters_and_presets() -> None:
    full = template(FULL)
    full = replace(full, active=replace(full.active, readme="---\na: b\n---\n# Hi ![x](y)"))

    answer = Desk(known=catalog(full)).ask("read_template", template_id=full.id.upper())

    assert answer is not None
    branch, cpus, token, flags, fast = answer.result["parameters"]
    assert answer.result["template"] == {
        "id": full.id,
        "name": "full",
        "active_version_id": uid("version"),
        "display_name": "Full",
        "readme": "# Hi",
    }
    assert branch == {
        "name": "branch",
        "type": "string",
        "required": False,
        "mutable": True,
        "display_name": "Branch",
        "description": "Which",
        "default": "main",
        "options": [
            {"name": "Main", "value": "main", "description": "d"},
            {"name": "Next", "value": "next"},
        ],
        "validation_regex": "^[a-z-]+$",
    }
    assert cpus == {
        "name": "cpus",
        "type": "number",
        "required": False,
        "mutable": False,
        "default": "2",
        "validation_min": 1,
        "validation_max": 2.5,
    }
    assert (token["required"], token["sensitive"]) == (True, True)
    assert (flags["type"], flags["default"]) == ("list(string)", '["a", "b"]')
    assert fast["default"] == "true"
    assert answer.result["presets"] == [
        {
            "id": full.preset_id(full.active.manifest.preset[0]),
            "name": "quick",
            "default": True,
            "description": "p",
            "parameters": [{"name": "cpus", "value": "1"}, {"name": "token", "value": "***"}],
        }
    ]


def test_t1_keys_without_a_value_are_omitted() -> None:
    bare = template(plain("bare"))

    answer = Desk(known=catalog(bare)).ask("read_template", template_id=bare.id)

    assert answer is not None
    assert answer.result == {
        "template": {"id": bare.id, "name": "bare", "active_version_id": uid("version")},
        "parameters": [],
    }


def test_t2_a_template_that_the_chat_may_not_use_is_not_found() -> None:
    foreign = template(plain("foreign"), organization=uid("another"))
    hidden = template(plain("kept", "agents_allowed = false"))
    desk = Desk(known=catalog(foreign, hidden))

    for wanted in (foreign.id, hidden.id, uid("nothing")):
        answer = desk.ask("read_template", template_id=wanted)

        assert is_error(answer)
        assert answer is not None
        assert "not found" in answer.result["error"]


@pytest.mark.parametrize("wrong", [None, " ", "python"])
def test_t3_the_template_must_be_a_uuid(wrong: str | None) -> None:
    assert is_error(Desk().ask("read_template", template_id=wrong))
