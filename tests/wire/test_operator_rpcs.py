"""What operators ask: status, waiting calls, build times, dead letters; by rpc and by HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tests.rigs.client import ServiceError
from tests.rigs.http import HttpClient, http_client
from tests.rigs.messages import new_id
from tests.rigs.world import POOL, World

ROUTES = ("/v1/status", "/v1/calls", "/v1/builds/times", "/v1/dead", "/v1/dead/1")


@pytest.fixture
async def operator(world: World) -> AsyncIterator[HttpClient]:
    assert world.deployment.up is not None
    token = (world.deployment.credentials / "operator.token").read_text()
    async with http_client(world.deployment.up.http, token) as client:
        yield client


async def dead_letter(world: World, body: bytes = b"{", **headers: str) -> Mapping[str, Any]:
    """Publish a fact that can't be accepted; return it as `list_dead` shows it."""
    chat_id = new_id()
    heard = await world.operator.hear("workspaced.dead.provisioner")
    subject = f"workspaced.in.provisioner.{chat_id}.{world.provisioner.name}"
    await world.provisioner.publish(subject, body, headers)
    await heard.first(lambda letter: (letter.headers or {}).get("Workspaced-Subject") == subject)
    page = await world.operator.rpc("list_dead")
    (found,) = [letter for letter in page["letters"] if letter["chat_id"] == chat_id]
    return dict(found)


async def test_status_tells_what_runs(world: World) -> None:
    status = await world.operator.rpc("status")

    servers = {server["kind"]: server for server in status["servers"]}
    assert servers["nats"]["reachable"]
    assert servers["nats"]["version"].startswith("2.")
    assert servers["postgresql"]["version"].split(".")[0].isdecimal()
    assert all(server["started_at"] for server in status["servers"])
    (worker,), (gateway,) = status["workers"], status["gateways"]
    assert worker["version"] == gateway["version"] == status["version"]
    assert worker["limits"]["jobs"] == 1000
    streams = {stream["name"]: stream for stream in status["streams"]}
    assert streams["WORKSPACED_IN"]["consumers"][0]["name"] == "worker"
    assert len(streams) == 9


async def test_a_pool_shows_its_builds_and_whether_anybody_serves_it(world: World) -> None:
    chat = await world.chat()
    await chat.ask("create_workspace", {"template_id": world.plain}, call_id="c1")
    job = await world.provisioner.job(chat)

    pools = {one["pool"]: one for one in (await world.operator.rpc("status"))["pools"]}
    await world.provisioner.fail(job)
    await chat.answer("c1")

    assert pools[POOL]["running"] >= 1
    assert pools[POOL]["served"] is True


async def test_waiting_calls_are_listed_oldest_first_a_page_at_a_time(world: World) -> None:
    chat = await world.chat()
    for number in range(103):
        await chat.ask("create_workspace", {"template_id": world.plain}, call_id=f"c{number:03}")
    job = await world.provisioner.job(chat)
    await chat.call("list_templates")  # the requests before it are stored

    first = await world.operator.rpc("list_calls", chat_id=chat.id)
    rest = await world.operator.rpc("list_calls", chat_id=chat.id, cursor=first["next"])
    everything = await world.operator.rpc("list_calls")
    await world.provisioner.fail(job)
    await chat.answer("c102")
    none = await world.operator.rpc("list_calls", chat_id=chat.id)

    calls = [*first["calls"], *rest["calls"]]
    assert [call["call_id"] for call in calls][:100] == [f"c{number:03}" for number in range(100)]
    assert calls[0]["state"] == "building"
    assert calls[0]["waits_for"] == "the end of build 1"
    assert calls[0]["deadline"]
    assert calls[0]["chat_id"] == chat.id
    assert len(everything["calls"]) == 100
    assert none == {"calls": []}


async def test_build_times_are_told_by_template_and_transition(
    world: World, operator: HttpClient
) -> None:
    for fails in (False, True):
        chat = await world.chat()
        await chat.ask("create_workspace", {"template_id": world.plain}, call_id="c1")
        job = await world.provisioner.job(chat)
        await world.provisioner.publish_event("build_started", job)
        await (world.provisioner.fail if fails else world.provisioner.succeed)(job)
        await chat.answer("c1")

    times = await world.operator.rpc("build_times", seconds=3600)
    (starts,) = [
        one
        for one in times["templates"]
        if (one["template"], one["transition"]) == ("plain", "start")
    ]

    assert times["complete"]
    assert times["builds"] >= starts["count"] >= 2
    assert starts["failed"] >= 1
    assert 0 <= starts["median"] <= starts["p90"] <= starts["longest"]
    assert starts["queued"] >= 0
    status, answer = await operator.ask("GET", "/v1/builds/times?seconds=3600")
    assert status == 200
    assert answer["builds"] >= times["builds"]


async def test_dead_letters_are_listed_newest_first_and_read(world: World) -> None:
    older = await dead_letter(world, b"{", Own="header")
    newer = await dead_letter(world, b"[]")

    page = await world.operator.rpc("list_dead")
    read = await world.operator.rpc("read_dead", sequence=older["sequence"])

    sequences = [letter["sequence"] for letter in page["letters"]]
    assert sequences == sorted(sequences, reverse=True)
    assert sequences.index(newer["sequence"]) < sequences.index(older["sequence"])
    assert newer["reason"] == "not_cloudevents"
    assert older.items() <= read.items()
    assert (read["body"], read["size"], read["reason"]) == ("{", 1, "not_json")
    assert read["headers"]["Own"] == "header"
    assert "has to send it again" in read["advice"]
    assert read["refusal"] is None
    before = await world.operator.rpc("list_dead", before=older["sequence"])
    assert all(letter["sequence"] < older["sequence"] for letter in before["letters"])
    with pytest.raises(ServiceError, match="404"):
        await world.operator.rpc("read_dead", sequence=newer["sequence"] + 1000)


async def test_only_a_token_of_an_operator_permits_these_questions(
    world: World, operator: HttpClient
) -> None:
    letter = await dead_letter(world)
    for path in ROUTES[:-1]:
        status, answer = await operator.ask("GET", path)
        assert status == 200, answer
    status, answer = await operator.ask("GET", f"/v1/dead/{letter['sequence']}")
    assert status == 200
    assert answer["body"] == "{"
    assert (await operator.ask("GET", "/v1/dead/0"))[0] == 400
    assert (await operator.ask("GET", f"/v1/dead/{letter['sequence'] + 1000}"))[0] == 404
    issued = await world.operator.rpc("issue_token", role="chat-service")
    async with http_client(operator.url, issued["token"]) as service:
        for path in ROUTES:
            assert (await service.ask("GET", path))[0] == 403


async def test_the_problems_name_dead_letters(world: World) -> None:
    await dead_letter(world)

    problems = (await world.operator.rpc("status"))["problems"]

    (dead,) = [problem for problem in problems if problem["where"] == "dead letters"]
    assert "workspaced dead list" in dead["do"]
    json.dumps(dead)
