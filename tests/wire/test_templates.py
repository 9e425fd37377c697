"""Templates as chats see them: lists, parameters, presets, versions, and the settings of operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.messages import new_id
from tests.rigs.world import ORGANIZATION, Deployment, World, template_folder


async def test_every_invalid_parameter_is_named(world: World) -> None:
    chat = await world.chat()
    wrong = {"branch": "other", "size": "12", "word": "UPPER", "colour": "red"}

    result = await chat.call("create_workspace", {"template_id": world.rich, "parameters": wrong})
    missing = await chat.call("create_workspace", {"template_id": world.rich})

    assert result.keys() - {"detail"} == {"error", "validations"}
    assert {fault["field"] for fault in result["validations"]} == wrong.keys()
    assert all(fault.keys() == {"field", "detail"} for fault in result["validations"])
    assert [fault["field"] for fault in missing["validations"]] == ["word"]
    assert chat.states.all == []


async def test_a_preset_supplies_the_values_that_the_call_omits(world: World) -> None:
    chat = await world.chat()
    read = await chat.call("read_template", {"template_id": world.rich})
    preset = read["presets"][0]["id"]

    args = {"template_id": world.rich, "preset_id": preset, "parameters": {"word": "mine"}}
    await chat.ask("create_workspace", args)
    job = await world.provisioner.job(chat)
    await world.provisioner.fail(job)

    assert job.preset_id == preset
    assert job.parameters["branch"] == "next"
    assert job.parameters["word"] == "mine"
    other = {"template_id": world.rich, "preset_id": new_id()}
    assert await chat.call_error("create_workspace", other)


async def test_a_start_keeps_parameters_and_changes_mutable_ones(world: World) -> None:
    chat = await world.chat()
    parameters = {"word": "hello", "size": 5}
    await chat.ask("create_workspace", {"template_id": world.rich, "parameters": parameters})
    await world.provisioner.succeed(await world.provisioner.job(chat))
    await chat.state("ready")
    call = await chat.ask("stop_workspace")
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await chat.answer(call)

    wrong = await chat.call("start_workspace", {"parameters": {"size": 6}})
    call = await chat.ask("start_workspace", {"parameters": {"branch": "next"}})
    job = await world.provisioner.job(chat, "start", number=3)
    await world.provisioner.succeed(job)
    await chat.answer(call)

    assert [fault["field"] for fault in wrong["validations"]] == ["size"]
    assert wrong["template_id"] == world.rich
    assert job.parameters == {"branch": "next", "word": "hello", "size": "5", "secret": "hush"}


async def test_templates_are_listed_and_read(world: World) -> None:
    chat = await world.chat()

    page = await chat.call("list_templates")
    found = await chat.call("list_templates", {"query": "pARAMETERS of"})
    empty = await chat.call("list_templates", {"query": "%", "page": 0})
    past = await chat.call("list_templates", {"page": 99})
    read = await chat.call("read_template", {"template_id": world.rich.upper()})

    counts = {"count", "page", "total_pages", "total_count"}
    assert page.keys() == {"templates", *counts}
    assert [template["name"] for template in page["templates"]] == ["plain", "rich"]
    assert page["templates"][0] == {
        "id": world.plain,
        "name": "plain",
        "organization_id": ORGANIZATION,
        "display_name": "Plain",
        "description": "Nothing but a name",
    }
    assert {key: page[key] for key in counts} == {
        "count": 2,
        "page": 1,
        "total_pages": 1,
        "total_count": 2,
    }
    assert [template["name"] for template in found["templates"]] == ["rich"]
    assert (empty["templates"], empty["page"], empty["total_pages"]) == ([], 1, 1)
    assert (past["templates"], past["page"]) == ([], 99)
    assert read["template"].keys() == {
        "id",
        "name",
        "active_version_id",
        "display_name",
        "description",
        "readme",
    }
    assert read["template"]["active_version_id"] == world.deployment.templates["rich"]["version_id"]
    parameters = {parameter["name"]: parameter for parameter in read["parameters"]}
    assert parameters["branch"] == {
        "name": "branch",
        "type": "string",
        "required": False,
        "mutable": True,
        "description": "Branch to check out",
        "default": "main",
        "options": [{"name": "Main", "value": "main"}, {"name": "Next", "value": "next"}],
    }
    assert parameters["size"] == {
        "name": "size",
        "type": "number",
        "required": False,
        "mutable": False,
        "default": "3",
        "validation_min": 1,
        "validation_max": 9,
    }
    assert "default" not in parameters["word"]
    assert parameters["word"]["validation_regex"] == "^[a-z]+$"
    assert parameters["secret"]["default"] == "***"
    assert parameters["secret"]["sensitive"] is True
    (preset,) = read["presets"]
    assert preset.keys() == {"id", "name", "default", "parameters"}
    assert preset["default"] is True
    assert {p["name"]: p["value"] for p in preset["parameters"]} == {
        "branch": "next",
        "word": "preset",
    }


async def test_another_organization_cannot_see_the_templates(world: World) -> None:
    chat = await world.chat()
    chat.organization_id = new_id()

    page = await chat.call("list_templates")

    assert page["templates"] == []
    assert page["total_pages"] == 1
    assert await chat.call_error("read_template", {"template_id": world.plain})
    assert await chat.call_error("create_workspace", {"template_id": world.plain})


class TestSettings:
    """A setting takes effect in all workers at once."""

    @pytest.fixture
    def allow(self, deployment: Deployment) -> Iterator[None]:
        assert deployment.up is not None
        rich = str(deployment.templates["rich"]["template_id"])
        done = deployment.up.run("settings", "set", "chat_template_allowlist", rich)
        assert done.returncode == 0, done.stderr
        yield
        deployment.up.run("settings", "set", "chat_template_allowlist", "")

    async def test_only_templates_on_the_allowlist_are_visible(
        self, world: World, allow: None
    ) -> None:
        chat = await world.chat()

        page = await chat.call("list_templates")

        assert [template["id"] for template in page["templates"]] == [world.rich]
        assert await chat.call_error("read_template", {"template_id": world.plain})
        assert await chat.call_error("create_workspace", {"template_id": world.plain})

    async def test_a_workspace_is_stopped_when_its_lifetime_is_over(self, world: World) -> None:
        assert world.deployment.up is not None
        assert (
            world.deployment.up.run("settings", "set", "chat_workspace_ttl", "700ms").returncode
            == 0
        )
        try:
            chat = await world.chat()
            _, job = await world.building(chat)
        finally:
            world.deployment.up.run("settings", "set", "chat_workspace_ttl", "")
        await world.provisioner.succeed(job)
        await chat.state("ready")

        stopping = await chat.state("stopping")
        stop = await world.provisioner.job(chat, "stop")
        await world.provisioner.succeed(stop)
        await chat.state("stopped")

        assert job.ttl_ms == 700
        assert stopping["cause"]["type"] == "workspaced.ttl_passed.v1"
        assert stopping["cause"]["source"] == "/workspaced"

    async def test_a_template_that_chats_may_not_use_is_hidden(
        self, world: World, tmp_path: Path
    ) -> None:
        assert world.deployment.up is not None
        text = 'name = "closed"\npool = "wire"\nagents_allowed = false\n'
        folder = template_folder(tmp_path, "closed", text)
        pushed = world.deployment.up.data(
            "template", "push", folder, "--organization", ORGANIZATION
        )
        chat = await world.chat()

        page = await chat.call("list_templates")

        assert "closed" not in [template["name"] for template in page["templates"]]
        assert await chat.call_error("create_workspace", {"template_id": pushed["template_id"]})


async def test_a_template_may_require_its_active_version(world: World, tmp_path: Path) -> None:
    assert world.deployment.up is not None
    text = 'name = "newest"\npool = "wire"\nrequire_active_version = true\n'
    push = ("template", "push", template_folder(tmp_path, "newest", text))
    organization = new_id()
    old = world.deployment.up.data(*push, "--organization", organization)
    chat = await world.chat()
    chat.organization_id = organization
    call = await chat.ask("create_workspace", {"template_id": old["template_id"]})
    await world.provisioner.succeed(await world.provisioner.job(chat))
    await chat.answer(call)
    call = await chat.ask("stop_workspace")
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await chat.answer(call)

    (tmp_path / "newest" / "more.txt").write_text("more")
    new = world.deployment.up.data(*push, "--organization", organization)
    call = await chat.ask("start_workspace")
    job = await world.provisioner.job(chat, "start", number=3)
    await world.provisioner.succeed(job)
    result = (await chat.answer(call))["result"]

    assert new["template_id"] == old["template_id"]
    assert new["version_id"] != old["version_id"]
    assert job.template["version_id"] == new["version_id"]
    assert result["updated_to_active_version"] is True
    assert result["update_reason"]
    assert result["message"]
