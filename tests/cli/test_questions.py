"""What operators ask is answered by one command each, in the situations in which they ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.embedded import Servers
from tests.cli.template_folders import folder
from tests.rigs.client import Participant, connected, role_options
from tests.rigs.messages import cloud_event, new_id
from tests.rigs.system import SLOW, System

NOWHERE = "nats://127.0.0.1:1"


def problems(system: System, **other: str) -> dict[str, str]:
    """Return what `status` finds wrong, by place."""
    done = system.run("status", **other)
    status = json.loads(done.stdout)
    assert done.returncode == (1 if status["problems"] else 0), done.stderr
    assert all(problem["do"] for problem in status["problems"])
    return {problem["where"]: problem["what"] for problem in status["problems"]}


@pytest.fixture
def system(own_nats: Servers, database_url: str, tmp_path: Path) -> Iterator[System]:
    system = System(own_nats, database_url, tmp_path / "home")
    yield system
    system.close()


def test_each_question_is_answered_in_the_situation_that_raises_it(
    system: System, tmp_path: Path
) -> None:
    system.data("migrate")
    system.data("template", "push", folder(tmp_path, SLOW))
    nothing = problems(system)
    assert "no worker runs" in nothing["workers"]
    assert "no gateway runs" in nothing["gateways"]
    assert "pool garage" in nothing

    with system.role("worker", WORKSPACED_JOB_QUEUE="1"), system.role("gateway") as gateway:
        unserved = problems(system)
        assert unserved == {"pool garage": "no provisioner serves it: the next build will wait"}

        chat = new_id()
        creating = system.begin("create", "slow", "--chat", chat, "--call-id", "c1")
        creating.wait_for_output("nobody serves it")
        full = system.run("status")
        assert full.returncode == 1
        assert "no provisioner serves it: 1 build waits" in full.stdout
        assert "its queue is full: 1 build waits" in full.stdout
        (call,) = system.data("calls", "list")
        assert (call["chat_id"], call["call_id"], call["state"]) == (chat, "c1", "building")
        assert call["waits_for"] == "the end of build 1"

        name = ("provisioner", "--name", "smith", "--pool", "garage")
        with system.role(*name):
            creating.wait_for_output("begun")
            assert problems(system) == {}
        dead = problems(system)  # it was killed
        assert dead["pool garage"] == (
            "no provisioner serves it, and 1 build that one had begun is not going on"
        )

        with system.role(*name):
            system.data("build", "cancel", chat, "--reason", "enough of it")
            assert creating.ended() == 1
        (times,) = system.data("build", "times")
        (slow,) = times["templates"]
        assert (slow["template"], slow["count"], slow["canceled"]) == ("slow", 1, 1)

        steps = system.data("history", chat)
        assert (steps[0]["who"], steps[0]["what"]) == ("me (cli)", "asked for create_workspace")
        building, failed = [step for step in steps if step["entered"]]
        assert (building["state"], failed["state"]) == ("building", "failed")
        assert failed["previous_seconds"] > 0
        whats = [step["what"] for step in steps]
        assert "requested start build 1 of template slow in pool garage" in whats
        assert "began start build 1" in whats
        assert "enough of it" in [step["detail"] for step in steps]

        gateway.kill()
        alone = problems(system)
        assert "no gateway runs" in alone["gateways"]
        assert "workers" not in alone

    away = problems(system, nats=NOWHERE)
    assert "NATS does not answer" in away["NATS"]
    without = problems(system, database="postgresql://nobody@127.0.0.1:1/none")
    assert "the database takes no changes" in without["PostgreSQL"]


async def test_dead_letters_are_listed_shown_replayed_and_dropped(system: System) -> None:
    chat, call = new_id(), json.dumps({"data": {"call_id": "c1"}}).encode()
    system.data("migrate")
    with system.role("worker"):
        options = role_options(system.credentials, "operator")
        async with connected(Participant(), system.nats, **options) as operator:
            dead = await operator.hear("workspaced.dead.*")
            for kind, body in (("provisioner", b"{"), ("provisioner", b"[]"), ("tool", call)):
                await operator.publish(f"workspaced.in.{kind}.{chat}.sender", body)
            await dead.count(3)

            listed = await asyncio.to_thread(system.data, "dead", "list")
            shown = await asyncio.to_thread(system.data, "dead", "show", "1")
            status = await asyncio.to_thread(system.run, "status")
            refused = await asyncio.to_thread(system.run, "dead", "replay", "3")
            replayed = await asyncio.to_thread(system.data, "dead", "replay", "1")
            again = (await dead.count(4))[3]

    assert [letter["sequence"] for letter in listed] == [3, 2, 1]
    assert [letter["reason"] for letter in listed] == [
        "not_cloudevents",
        "not_cloudevents",
        "not_json",
    ]
    assert (shown[0]["body"], shown[0]["chat_id"]) == ("{", chat)
    assert "3 messages could not be accepted" in status.stdout
    assert refused.returncode == 1
    assert "it has to call again, with a new call_id" in refused.stderr
    assert replayed[0]["stream"] == "WORKSPACED_IN"
    assert again.data == b"{", "it is as wrong as before"
    assert (again.headers or {})["Workspaced-Subject"] == f"workspaced.in.provisioner.{chat}.sender"

    unsure = system.run("dead", "drop", "2")
    assert unsure.returncode == 2
    assert "--yes" in unsure.stderr
    assert system.data("dead", "drop", "2", "3", "--yes")[1] == {"sequence": 3, "dropped": True}
    unknown = system.run("dead", "drop", "2", "--yes")
    assert unknown.returncode == 1
    assert "there is no dead letter 2" in unknown.stderr
    assert len(system.data("dead", "list")) == 1
    assert system.data("dead", "drop", "--all", "--yes")
    assert system.data("dead", "list") == []


async def test_a_replayed_fact_has_the_effect_that_it_would_have_had(system: System) -> None:
    """A worker that could not accept a fact put it aside; the next one can."""
    chat, workspace = new_id(), new_id()
    system.data("migrate")
    fact = cloud_event(
        "build_started",
        "/provisioner/forge",
        chat,
        {"workspace_id": workspace, "build_id": new_id(), "build_number": 1, "transition": "start"},
    )
    with system.role("worker"), system.role("gateway"):
        options = role_options(system.credentials, "operator")
        async with connected(Participant(), system.nats, **options) as operator:
            subject = f"workspaced.in.provisioner.{chat}.forge"
            headers = {
                "Workspaced-Subject": subject,
                "Workspaced-Reason": "internal",
                "Workspaced-Detail": "a fault of workspaced",
                "Workspaced-Headers": json.dumps(
                    {"Content-Type": "application/cloudevents+json", "Nats-Msg-Id": "x"}
                ),
            }
            await operator.publish("workspaced.dead.provisioner", fact, headers)
            await asyncio.to_thread(system.data, "dead", "replay", "1")
            heard = await operator.hear(f"workspaced.ui.{chat}.state")
            entries = await operator.rpc("read_events", chat_id=chat)
            if not entries["events"]:
                await heard.first(lambda _: True)
                entries = await operator.rpc("read_events", chat_id=chat)

    assert [entry["event"]["id"] for entry in entries["events"]] == [fact["id"]]
    assert system.data("dead", "list") == []
