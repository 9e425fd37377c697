"""Values of parameters (C5i, S7c to S7g), numbered as in docs/internals/tool-rules.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.client import Chat, Job
from tests.rigs.messages import Event, new_id
from tests.rigs.world import World, template_folder
from tests.wire import steps
from tests.wire.steps import START, STOP


def toml(name: str, *parameters: str) -> str:
    """Return a template that requires its active version, with these parameters."""
    tables = "".join(f"[[parameter]]\n{table}\n" for table in parameters)
    return f'name = "{name}"\npool = "wire"\nrequire_active_version = true\n{tables}'


@dataclass
class Changing:
    """A template with several versions, and a chat with a workspace of that template."""

    world: World
    chat: Chat
    folder: Path

    async def made(self, *tables: str, **parameters: object) -> Job:
        """Push the first version, and create and stop a workspace of it."""
        await self.changed(*tables)
        template = self._pushed["template_id"]
        call = await steps.request_create(
            self.world, self.chat, template_id=template, parameters=parameters
        )
        job = await self.world.provisioner.job(self.chat)
        await self.world.provisioner.succeed(job)
        await steps.successful_result(self.chat, call)
        await steps.given_finished_stop(self.world, self.chat)
        return job

    async def changed(self, *tables: str) -> None:
        """Push a version with these parameters."""
        assert self.world.deployment.up is not None
        (self.folder / "template.toml").write_text(toml(self.folder.name, *tables))
        push = ("template", "push", self.folder, "--organization", self.chat.organization_id)
        self._pushed: dict[str, Any] = self.world.deployment.up.data(*push)

    async def started(self, number: int = 3, **parameters: object) -> tuple[Event, Job]:
        """Start the workspace; return the answer and the job."""
        call = await self.chat.ask(START, {"parameters": parameters} if parameters else {})
        job = await self.world.provisioner.job(self.chat, "start", number)
        await self.world.provisioner.succeed(job)
        return await steps.successful_result(self.chat, call), job


@pytest.fixture
async def changing(world: World, tmp_path: Path) -> Changing:
    name = "changing"
    chat = await world.chat()
    chat.organization_id = new_id()
    return Changing(world, chat, template_folder(tmp_path, name, toml(name)))


TAGS = 'name = "tags"\ntype = "list(string)"\nmutable = false'
CPUS = 'name = "cpus"\ntype = "number"\nmutable = false'


async def test_c5i_values_become_the_text_that_a_template_would_contain(changing: Changing) -> None:
    flag, note = 'name = "flag"\ntype = "bool"', 'name = "note"\ndefault = "d"'
    given = {"tags": ["a", "b"], "cpus": 4.0, "flag": True, "note": None}

    job = await changing.made(TAGS, CPUS, flag, note, **given)

    assert job.parameters == {"tags": '["a", "b"]', "cpus": "4", "flag": "true", "note": "d"}


async def test_s7c_the_same_value_in_another_spelling_is_no_change(changing: Changing) -> None:
    made = await changing.made(TAGS, CPUS, tags='["a","b"]', cpus="4")

    _, job = await changing.started(tags=["a", "b"], cpus=4.0)
    assert job.parameters == made.parameters == {"tags": '["a","b"]', "cpus": "4"}
    await steps.given_finished_stop(changing.world, changing.chat)
    refused = await changing.chat.call(START, {"parameters": {"tags": ["b", "a"], "cpus": "5"}})
    assert [wrong["field"] for wrong in refused["validations"]] == ["tags", "cpus"]


async def test_s7d_a_new_immutable_parameter_may_be_given_once(
    changing: Changing,
) -> None:
    region = 'name = "region"\nmutable = false\ndefault = "us"'
    await changing.made(CPUS, cpus=2)
    await changing.changed(CPUS, region)

    _, job = await changing.started(region="eu")

    assert job.parameters == {"cpus": "2", "region": "eu"}
    await steps.given_finished_stop(changing.world, changing.chat)
    refused = await changing.chat.call(START, {"parameters": {"region": "us"}})
    assert [wrong["field"] for wrong in refused["validations"]] == ["region"]


SIZE = 'name = "size"\ntype = "number"'


async def test_s7e_a_mutable_value_that_became_invalid_is_reset_and_named(
    changing: Changing,
) -> None:
    """The call first waits for a stop; its answer names the value nevertheless."""
    await changing.made(SIZE, size=8)
    await changing.started()
    await changing.changed(f"{SIZE}\nvalidation_max = 4\ndefault = 2")
    stop = await changing.chat.ask(STOP)
    stopping = await changing.world.provisioner.job(changing.chat, "stop", 4)
    start = await changing.chat.ask(START)
    await changing.world.provisioner.succeed(stopping)
    await steps.successful_result(changing.chat, stop)

    job = await changing.world.provisioner.job(changing.chat, "start", 5)
    await changing.world.provisioner.succeed(job)

    answer = await steps.successful_result(changing.chat, start)
    assert answer["parameters_reset"] == ["size"]
    assert answer["updated_to_active_version"] is True
    assert job.parameters == {"size": "2"}


async def test_s7e_an_invalid_value_without_a_default_must_be_given_by_the_call(
    changing: Changing,
) -> None:
    await changing.made(SIZE, size=8)
    await changing.changed(f"{SIZE}\nvalidation_max = 4\nrequired = true")

    refused = await changing.chat.call(START)
    assert [wrong["field"] for wrong in refused["validations"]] == ["size"]
    answer, job = await changing.started(size=3)

    assert job.parameters == {"size": "3"}
    assert "parameters_reset" not in answer


async def test_s7f_s7g_an_immutable_value_is_kept_and_a_removed_parameter_is_omitted(
    changing: Changing,
) -> None:
    await changing.made(CPUS, 'name = "gone"', cpus=8, gone="x")
    await changing.changed(f"{CPUS}\nvalidation_max = 4\ndefault = 2")

    answer, job = await changing.started()

    assert job.parameters == {"cpus": "8"}
    assert "parameters_reset" not in answer
