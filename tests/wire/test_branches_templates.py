"""list_templates (L), read_template (T), and create_workspace's rules of templates (C5)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.rigs.client import Chat
from tests.rigs.messages import Event, new_id
from tests.rigs.world import Deployment, World, template_folder
from tests.wire import steps
from tests.wire.steps import CREATE

NUMBERED = [f"t{number:02}" for number in range(11)]
FULL = """
name = "full"
display_name = "A_100% full one"
pool = "wire"

[[parameter]]
name = "branch"
display_name = "Branch"
default = "main"
options = [{ name = "Main", value = "main", description = "d" }, { name = "Next", value = "next" }]

[[parameter]]
name = "cpus"
type = "number"
default = 2
mutable = false
validation_min = 1
validation_max = 8.5

[[parameter]]
name = "fast"
type = "bool"
default = true

[[parameter]]
name = "flags"
type = "list(string)"
default = ["a", "b"]

[[parameter]]
name = "word"
required = true
validation_regex = "[a-z]{3}"

[[parameter]]
name = "token"
sensitive = true
required = true

[[preset]]
name = "large"
default = true
description = "All of it"
parameters = { cpus = 8, token = "of-the-preset", word = "presets" }

[build]
start = "true"
"""
README = """---
title: hidden
---
# Full

![a picture](picture.png)
What it is for.
"""


@pytest.fixture(scope="module")
def many_templates(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Event]:
    """Push templates to a new organization; return the replies by name, and the organization's id under ''."""
    assert deployment.up is not None
    up, parent, organization = deployment.up, tmp_path_factory.mktemp("many"), new_id()
    texts = {name: f'name = "{name}"\npool = "wire"\n' for name in NUMBERED}
    texts["closed"] = 'name = "closed"\npool = "wire"\nagents_allowed = false\n'
    texts["full"] = FULL

    def push(name: str) -> Event:
        folder = template_folder(parent, name, texts[name])
        (folder / "README.md").write_text(README + "x" * 9000)
        return dict(up.data("template", "push", folder, "--organization", organization))

    with ThreadPoolExecutor(4) as pool:
        pushed = dict(zip(texts, pool.map(push, texts), strict=True))
    return {"": {"id": organization}, **pushed}


async def chat_of_organization(world: World, many_templates: Mapping[str, Event]) -> Chat:
    chat = await world.chat()
    chat.organization_id = many_templates[""]["id"]
    return chat


async def test_l1_the_list_holds_the_organizations_allowed_templates_by_name(
    world: World, many_templates: Mapping[str, Event]
) -> None:
    chat = await chat_of_organization(world, many_templates)

    page = await chat.call("list_templates")

    names = ["full", *NUMBERED]
    assert [template["name"] for template in page.pop("templates")] == names[:10]
    assert page == {"count": 10, "page": 1, "total_pages": 2, "total_count": 12}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("FuLL oNe", ["full"]),
        ("t0", NUMBERED[:10]),
        ("_", ["full"]),
        ("100%", ["full"]),
        ("%", ["full"]),
        ("f.ll", []),
        ("T1", ["t10"]),
        ("closed", []),
        ("plain", []),
        (None, ["full", *NUMBERED][:10]),
    ],
)
async def test_l2_a_query_matches_a_part_of_the_text(
    world: World, many_templates: Mapping[str, Event], query: str | None, found: list[str]
) -> None:
    chat = await chat_of_organization(world, many_templates)

    page = await chat.call("list_templates", {"query": query})

    assert [template["name"] for template in page["templates"]] == found


@pytest.mark.parametrize(
    ("page", "shown", "names"),
    [
        (0, 1, ["full", *NUMBERED][:10]),
        (-7, 1, ["full", *NUMBERED][:10]),
        (2, 2, NUMBERED[-2:]),
        (3, 3, []),
    ],
)
async def test_l3_a_page_has_ten_templates(
    world: World, many_templates: Mapping[str, Event], page: int, shown: int, names: list[str]
) -> None:
    chat = await chat_of_organization(world, many_templates)

    found = await chat.call("list_templates", {"page": page})

    assert [template["name"] for template in found.pop("templates")] == names
    assert found == {"count": len(names), "page": shown, "total_pages": 2, "total_count": 12}


async def test_t1_read_template_returns_parameters_and_presets(
    world: World, many_templates: Mapping[str, Event]
) -> None:
    chat = await chat_of_organization(world, many_templates)

    read = await chat.call(
        "read_template", {"template_id": many_templates["full"]["template_id"].upper()}
    )
    bare = await chat.call("read_template", {"template_id": many_templates["t00"]["template_id"]})

    readme = read["template"].pop("readme")
    assert read["template"] == {
        "id": many_templates["full"]["template_id"],
        "name": "full",
        "active_version_id": many_templates["full"]["version_id"],
        "display_name": "A_100% full one",
    }
    assert readme.startswith("# Full")
    assert "picture" not in readme
    assert "hidden" not in readme
    assert len(readme) <= 8000
    branch, cpus, fast, flags, word, token = read["parameters"]
    assert branch["options"][0] == {"name": "Main", "value": "main", "description": "d"}
    assert (branch["display_name"], branch["default"], branch["mutable"]) == (
        "Branch",
        "main",
        True,
    )
    assert cpus == {
        "name": "cpus",
        "type": "number",
        "required": False,
        "mutable": False,
        "default": "2",
        "validation_min": 1,
        "validation_max": 8.5,
    }
    assert (fast["type"], fast["default"]) == ("bool", "true")
    assert (flags["type"], flags["default"]) == ("list(string)", '["a", "b"]')
    assert (word["required"], word["validation_regex"]) == (True, "[a-z]{3}")
    assert token["sensitive"] is True
    (preset,) = read["presets"]
    assert preset["description"] == "All of it"
    values = {entry["name"]: entry["value"] for entry in preset["parameters"]}
    assert values == {"cpus": "8", "token": "***", "word": "presets"}
    assert bare["parameters"] == []
    assert "presets" not in bare


async def test_t2_a_template_that_the_chat_may_not_see_is_unknown(
    world: World, many_templates: Mapping[str, Event]
) -> None:
    chat = await chat_of_organization(world, many_templates)

    for template in (new_id(), world.plain, many_templates["closed"]["template_id"]):
        assert "not found" in await chat.call_error("read_template", {"template_id": template})


async def test_t3_the_template_id_must_be_a_uuid(world: World) -> None:
    chat = await world.chat()

    for wrong in ({}, {"template_id": None}, {"template_id": " "}, {"template_id": "plain"}):
        assert await chat.call_error("read_template", wrong)


async def test_c5a_c5b_c5c_c5e_an_unusable_template_or_preset_is_an_error(
    world: World, many_templates: Mapping[str, Event]
) -> None:
    chat = await chat_of_organization(world, many_templates)

    for template in (new_id(), world.plain, many_templates["closed"]["template_id"]):
        assert await chat.call_error(CREATE, {"template_id": template})
    preset = {"template_id": many_templates["full"]["template_id"], "preset_id": new_id()}
    assert await chat.call_error(CREATE, preset)

    assert chat.states.all == []
    assert await steps.all_jobs(world, chat) == []


async def test_c5f_every_invalid_parameter_is_named(
    world: World, many_templates: Mapping[str, Event]
) -> None:
    chat = await chat_of_organization(world, many_templates)
    template = many_templates["full"]["template_id"]
    wrong = {
        "branch": "other",
        "cpus": 9,
        "fast": "perhaps",
        "flags": '{"a": 1}',
        "word": "UP",
        "colour": "red",
    }

    answer = await steps.successful_result(
        chat, await steps.request_create(world, chat, template_id=template, parameters=wrong)
    )

    assert answer.keys() - {"detail"} == {"error", "validations"}
    assert all(fault.keys() == {"field", "detail"} for fault in answer["validations"])
    fields = [fault["field"] for fault in answer["validations"]]
    assert sorted(fields) == sorted([*wrong, "token"])  # `token` is required and missing
    assert chat.states.all == []


@pytest.mark.parametrize("cpus", ["many", "", "0.5", "nan", "inf", True])
async def test_c5f_a_number_must_be_within_its_bounds(
    world: World, many_templates: Mapping[str, Event], cpus: object
) -> None:
    chat = await chat_of_organization(world, many_templates)
    given = {"word": "xyz", "token": "t", "cpus": cpus}

    answer = await chat.call(
        CREATE, {"template_id": many_templates["full"]["template_id"], "parameters": given}
    )

    assert [fault["field"] for fault in answer["validations"]] == ["cpus"]


async def test_c5g_values_of_the_call_precede_those_of_the_preset_and_the_defaults(
    world: World, many_templates: Mapping[str, Event]
) -> None:
    chat = await chat_of_organization(world, many_templates)
    template = many_templates["full"]["template_id"]
    read = await chat.call("read_template", {"template_id": template})
    preset = read["presets"][0]["id"]
    given = {"word": "mine", "fast": False, "flags": ["c"]}

    await steps.request_create(
        world, chat, template_id=template, preset_id=preset.upper(), parameters=given
    )
    job = await world.provisioner.job(chat)

    assert job.preset_id == preset
    assert job.parameters == {
        "branch": "main",
        "cpus": "8",
        "fast": "false",
        "flags": '["c"]',
        "word": "mine",
        "token": "of-the-preset",
    }
