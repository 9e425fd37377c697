"""Sensitive values are contained in jobs, and in nothing else that others can read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bus.streams import JOB
from handlers.gateway.queries import Queries
from handlers.gateway.requests import ChatBody, EventsBody
from statemachine.mask import MASK
from tests.rigs.messages import agent_fact, new_id
from tests.unit.driver import template
from tests.worker.messages import Job, Senders, agent_of
from tests.worker.rig import Hand, Rig

SECRET, PRESET, OTHER, DEFAULT = "s3cret-1", "s3cret-2", "s3cret-3", "s3cret-4"
PIN = "471100815471100"
"""Long enough that no random id contains it by chance."""
TOML = f"""
name = "secretive"
[[parameter]]
name = "branch"
default = "main"
[[parameter]]
name = "token"
sensitive = true
required = true
validation_regex = "^s3"
[[parameter]]
name = "pin"
type = "number"
sensitive = true
default = 1
[[parameter]]
name = "key"
sensitive = true
mutable = false
default = "{DEFAULT}"
[[preset]]
name = "team"
parameters = {{ token = "{PRESET}", branch = "next" }}
[build]
start = "true"
"""
TEMPLATE = template(TOML, version="secretive")
TEAM = TEMPLATE.preset_id(TEMPLATE.active.manifest.preset[0])


@pytest.fixture
async def rig(caplog: pytest.LogCaptureFixture) -> Rig:
    caplog.set_level("DEBUG", "handlers")
    rig = await Rig().open()
    await rig.push(TEMPLATE)
    return rig


async def create_with_values(
    rig: Rig, hand: Hand, chat: str, parameters: Any, call: str = "c", **more: Any
) -> None:
    args = {"template_id": TEMPLATE.id, "parameters": parameters, **more}
    await rig.senders.ask(chat, "create_workspace", call, **args)
    await hand.pump()


async def make_ready(rig: Rig, hand: Hand, job: Job) -> None:
    await rig.senders.built(job)
    if job["transition"] == "start":
        await rig.senders.agent(job, "connected", 1)
        await rig.senders.agent(job, "ready", 2)
    await hand.pump()


async def everything_readable(rig: Rig, chat: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return all that can be read of the chat, except jobs and messages by callers and senders."""
    reader = Queries(rig.store, rig.bus)
    shown: list[Any] = [
        await reader.read_events(EventsBody(chat_id=chat)),
        await reader.get_chat(ChatBody(chat_id=chat)),
        rig.states,
        list(rig.results.values()),
        rig.envelopes,
        [
            (stored.call.args, stored.answer.result)
            for key, stored in rig.store.calls.items()
            if key.chat_id == chat and stored.answer is not None
        ],
        [record.getMessage() for record in caplog.records],
    ]
    streams = [
        (m.subject, m.data.decode(), dict(m.headers))
        for name, stream in rig.server.streams.items()
        if name not in (JOB.name, "WORKSPACED_IN", "WORKSPACED_DEAD")
        for m in stream.messages.values()
    ]
    return json.dumps([shown, streams], default=str)


async def expect_nothing_shows(rig: Rig, chat: str, caplog: pytest.LogCaptureFixture) -> str:
    text = await everything_readable(rig, chat, caplog)
    for secret in (SECRET, PRESET, OTHER, DEFAULT, PIN):
        assert secret not in text
    await rig.check(chat)
    return text


async def test_a_sensitive_value_of_a_call_appears_only_in_the_job(
    rig: Rig, hand: Hand, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    await create_with_values(rig, hand, chat, {"token": SECRET, "pin": int(PIN), "branch": "mine"})
    await expect_nothing_shows(rig, chat, caplog)  # also while the call waits
    assert rig.job["parameters"] == {
        "branch": "mine",
        "token": SECRET,
        "pin": PIN,
        "key": DEFAULT,
    }

    await make_ready(rig, hand, rig.job)

    assert rig.answer(chat)["result"]["created"]
    text = await expect_nothing_shows(rig, chat, caplog)
    assert "mine" in text, "what is not sensitive is shown"
    log = await rig.store.chats.log(chat)
    asked, requested = (entry["event"]["data"] for entry in log[:2])
    assert asked["args"]["parameters"] == {"token": MASK, "pin": MASK, "branch": "mine"}
    assert requested["parameters"] == {"branch": "mine", "token": MASK, "pin": MASK, "key": MASK}


async def test_a_sensitive_value_of_a_preset_appears_only_in_the_job(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    await send.ask(chat, "read_template", "read", template_id=TEMPLATE.id)
    await create_with_values(rig, hand, chat, None, preset_id=TEAM)

    assert rig.job["parameters"]["token"] == PRESET
    await expect_nothing_shows(rig, chat, caplog)
    found = rig.answer(chat, "read")["result"]
    values = {p["name"]: p["value"] for p in found["presets"][0]["parameters"]}
    assert values == {"token": MASK, "branch": "next"}
    assert {p["name"]: p.get("default") for p in found["parameters"]} == {
        "branch": "main",
        "token": None,
        "pin": MASK,
        "key": MASK,
    }


async def test_later_builds_get_the_unmasked_value(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    await create_with_values(rig, hand, chat, {"token": SECRET, "key": OTHER})
    await make_ready(rig, hand, rig.job)
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    assert rig.job["parameters"]["token"] == SECRET
    await make_ready(rig, hand, rig.job)

    await send.ask(chat, "start_workspace", "start", parameters={"branch": "next"})
    await hand.pump()

    started = rig.job["parameters"]
    assert started == {"branch": "next", "token": SECRET, "pin": "1", "key": OTHER}
    await make_ready(rig, hand, rig.job)
    await send.ask(chat, "stop_workspace", "stop-2")
    await hand.pump()
    await make_ready(rig, hand, rig.job)
    await send.ask(chat, "start_workspace", "change", parameters={"token": OTHER})
    await hand.pump()
    assert rig.job["parameters"] == {**started, "token": OTHER}
    await expect_nothing_shows(rig, chat, caplog)


async def test_an_invalid_sensitive_value_is_reported_without_the_value(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {"token": f"no {SECRET}", "pin": f"{SECRET}{PIN}", "tokn": OTHER}
    await create_with_values(rig, hand, chat, wrong, "wrong")
    found = rig.answer(chat, "wrong")["result"]["validations"]
    assert {one["field"] for one in found} == {"token", "pin", "tokn"}
    await create_with_values(rig, hand, chat, {"token": SECRET})
    await make_ready(rig, hand, rig.job)
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    await make_ready(rig, hand, rig.job)

    await send.ask(chat, "start_workspace", "bad", parameters={"key": OTHER, "pin": f"x{PIN}"})
    await hand.pump()

    found = rig.answer(chat, "bad")["result"]["validations"]
    assert {one["field"] for one in found} == {"key", "pin"}
    await expect_nothing_shows(rig, chat, caplog)


@pytest.mark.parametrize(
    "args",
    [
        {"parameters": [SECRET]},
        {"parameters": SECRET},
        {"parameters": {"token": {"deep": SECRET}}},
        {"parameters": {"token": SECRET}, "template_id": new_id()},
        {"parameters": {"token": SECRET}, "template_id": "secretive"},
        {"parameters": {"token": SECRET}, "template_id": ""},
        {"rich_parameters": [{"name": "token", "value": SECRET}]},
    ],
)
@pytest.mark.parametrize("tool", ["create_workspace", "start_workspace"])
async def test_an_invalid_call_reveals_no_value(
    rig: Rig,
    hand: Hand,
    send: Senders,
    chat: str,
    caplog: pytest.LogCaptureFixture,
    tool: str,
    args: dict[str, Any],
) -> None:
    await send.ask(chat, tool, **{"template_id": TEMPLATE.id, **args})
    await hand.pump()

    assert rig.answer(chat)["is_error"] or "validations" in rig.answer(chat)["result"]
    await expect_nothing_shows(rig, chat, caplog)


async def test_a_call_of_an_unknown_tool_reveals_no_value(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    for tool in ("restart_workspace", "list_templates", "stop_workspace"):
        await send.ask(chat, tool, tool, parameters={"token": SECRET})
    await hand.pump()

    await expect_nothing_shows(rig, chat, caplog)


async def test_a_call_whose_workspace_is_deleted_meanwhile_reveals_no_value(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stored with its values while it waits; after the deletion its template is unknown."""
    await create_with_values(rig, hand, chat, {"token": SECRET})
    await make_ready(rig, hand, rig.job)
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    await send.ask(chat, "start_workspace", "start", parameters={"token": OTHER})
    await hand.pump()
    assert (chat, "start") not in rig.results

    await send.deleted(rig.job)
    await hand.pump()

    assert rig.answer(chat, "start")["is_error"]
    await expect_nothing_shows(rig, chat, caplog)


async def test_a_repeated_call_reveals_no_value(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By a new event, by a repeat, and after the call was answered."""
    args = {"template_id": TEMPLATE.id, "parameters": {"token": SECRET}}
    for event_id in ("one", "one", "two"):
        await send.ask(chat, "create_workspace", event_id=event_id, **args)
        await hand.pump()
    await make_ready(rig, hand, rig.job)
    for event_id in ("one", "three"):
        await send.ask(chat, "create_workspace", event_id=event_id, **args)
        await hand.pump()

    assert [e["outcome"] for e in await rig.store.chats.log(chat)].count("repeat") == 2
    assert len(rig.jobs()) == 1
    await expect_nothing_shows(rig, chat, caplog)


async def test_stops_requested_by_workers_reveal_no_value(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Stops of a replaced workspace, of an orphan, and at the end of a lifetime."""
    await rig.store.put_setting("chat_workspace_ttl", "2h")
    await create_with_values(rig, hand, chat, {"token": SECRET})
    old = rig.job
    await send.built(old)
    await send.agent(old, "connected", 1)
    await send.agent(old, "disconnected", 2)
    await hand.pump()
    await create_with_values(rig, hand, chat, {"token": OTHER}, "again")
    new, stop = rig.jobs()[-2:]
    assert stop["parameters"]["token"] == SECRET
    await make_ready(rig, hand, new)
    await send.built(stop, "failed")
    await hand.pump()
    await hand.let_time_pass(900)
    assert (rig.job["build_number"], rig.job["parameters"]["token"]) == (3, SECRET)
    await hand.let_time_pass(7200)

    assert rig.state(chat)["state"] == "stopping"
    assert rig.job["parameters"]["token"] == OTHER
    await expect_nothing_shows(rig, chat, caplog)


async def test_a_dead_letter_reveals_no_value_to_callers(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The dead letter is for operators and contains the message; the answer does not."""
    bad = {"token": SECRET, "nul": "\0"}
    await send.ask(chat, "create_workspace", template_id=TEMPLATE.id, parameters=bad)
    await hand.pump()

    assert rig.answer(chat)["is_error"]
    assert len(rig.dead) == 1
    assert SECRET not in json.dumps(dict(rig.dead[0].headers))
    text = json.dumps(
        [list(rig.results.values()), rig.envelopes, [r.getMessage() for r in caplog.records]]
    )
    assert SECRET not in text


@pytest.mark.parametrize("name", ["create_workspace", "start_workspace"])
async def test_a_value_repeated_in_a_fact_is_masked_in_states_answers_and_logs(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Whichever provisioner sends it, and also as a repeat; replay still yields the snapshot."""
    await create_with_values(rig, hand, chat, {"token": f"{SECRET}\n{OTHER}", "pin": PIN})
    if name == "start_workspace":
        await make_ready(rig, hand, rig.job)
        await send.ask(chat, "stop_workspace", "stop")
        await hand.pump()
        await make_ready(rig, hand, rig.job)
        await send.ask(chat, name, "c2")
        await hand.pump()

    said = f"pin {PIN}: {SECRET} \\n{OTHER}\\n key={DEFAULT} on main"
    for _ in range(2):
        await send.built(rig.job, "failed", event_id="same", error=said, error_code=f"E_{SECRET}")
        await hand.pump()

    assert rig.state(chat)["failure"] == {
        "reason": "build_failed",
        "message": "pin ***: *** \\n***\\n key=*** on main",
        "error_code": "E_***",
    }
    await expect_nothing_shows(rig, chat, caplog)
    assert (await rig.outcomes(chat))[-2:] == ["moved", "repeat"]


async def test_a_value_repeated_by_an_agent_is_masked(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    await create_with_values(rig, hand, chat, {"token": SECRET})
    await make_ready(rig, hand, rig.job)

    reason = {"reason": f"curl {SECRET}: refused"}
    await send.publish(agent_fact("agent_disconnected", rig.job, agent_of(rig.job), 9, reason))
    await hand.pump()

    log = await rig.store.chats.log(chat)
    assert log[-1]["event"]["data"]["reason"] == "curl ***: refused"
    await expect_nothing_shows(rig, chat, caplog)


async def test_a_sensitive_value_inside_another_parameter_is_masked_in_the_log(
    rig: Rig, hand: Hand, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"https://me:{SECRET}@host/"
    await create_with_values(rig, hand, chat, {"token": SECRET, "branch": url})
    assert rig.job["parameters"]["branch"] == url

    await make_ready(rig, hand, rig.job)

    await expect_nothing_shows(rig, chat, caplog)


@pytest.mark.parametrize("unknown", [0, 30])
async def test_a_truncated_text_does_not_begin_with_part_of_a_value(
    rig: Rig, hand: Hand, send: Senders, chat: str, unknown: int
) -> None:
    """Workers shorten texts before they know the chat; of an error they keep the end.

    `unknown` is the number of other changes that the notice must mention.
    """
    await create_with_values(rig, hand, chat, {"token": "s3-first-half-second-half"})
    said = "s3-first-half-second-half" + "x" * (65_536 - len("-second-half"))
    more = {"error_code": "E-1" + "y" * 5000, "unknown": ["\0"] * unknown}

    await send.built(rig.job, "failed", error=said, **more)
    await hand.pump()

    failure = rig.state(chat)["failure"]
    assert "half" not in failure["message"]
    assert failure["message"].endswith("x" * 60_000)
    assert failure["error_code"].startswith("E-1"), "of this the beginning is kept"
    await rig.check(chat)
