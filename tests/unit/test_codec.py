"""The codec of CloudEvents: what it accepts, and what becomes a dead letter (contract §1)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine import events
from statemachine.codec import (
    MAX_SIZE,
    UPCASTS,
    Rejected,
    decode,
    encode,
    event_of,
    timestamp,
    written,
)
from statemachine.events import BY_KIND, Event, Lifecycle
from statemachine.strict_json import RejectReason
from tests.rigs.messages import cloud_event
from tests.unit.facts import (
    CHAT,
    NOW,
    agents,
    canceled,
    connected,
    deadline,
    deleted,
    disconnected,
    event,
    failed,
    lifecycle,
    lost,
    requested,
    resumed,
    started,
    succeeded,
    uid,
)

AGENT = uid("main")
SENDERS = {"tool": "chat-1", "provisioner": "local", "agent": AGENT}
SOURCES = {"tool": "/chat/chat-1", "provisioner": "/provisioner/local", "agent": f"/agent/{AGENT}"}
OF_BUILD = {
    "workspace_id": uid("w"),
    "build_id": uid("b"),
    "build_number": 1,
    "transition": "start",
}
OF_AGENT = {
    "workspace_id": uid("w"),
    "build_id": uid("b"),
    "agent_id": AGENT,
    "sequence": 1,
}
TOOL = {
    "call_id": "call-1",
    "tool": "create_workspace",
    "args": {"template_id": uid("t")},
    "organization_id": uid("org"),
    "owner_id": uid("ann"),
    "owner_name": "ann",
}
VALID: dict[str, tuple[str, dict[str, Any]]] = {
    "tool_requested": ("tool", TOOL),
    "tool_canceled": ("tool", {"call_id": "call-1"}),
    "delete_requested": ("tool", {"reason": "done"}),
    "keep_requested": ("tool", {"seconds": 60}),
    "build_cancel_requested": ("tool", {"build_id": uid("b"), "reason": "too slow"}),
    "build_started": ("provisioner", OF_BUILD),
    "build_succeeded": (
        "provisioner",
        {**OF_BUILD, "template_version_id": uid("v"), "agents": [{"id": AGENT, "name": "main"}]},
    ),
    "build_failed": (
        "provisioner",
        {**OF_BUILD, "error": "no", "quota": {"credits_consumed": 1, "budget": 2.5}},
    ),
    "build_canceled": ("provisioner", OF_BUILD),
    "workspace_deleted": (
        "provisioner",
        {"workspace_id": uid("w"), "build_id": None, "build_number": None},
    ),
    "agent_exited": (
        "provisioner",
        {
            "workspace_id": uid("w"),
            "build_id": uid("b"),
            "agent_id": AGENT,
            "build_number": 1,
            "exit_code": 137,
            "signal": "KILL",
            "output": "out of memory",
        },
    ),
    "agent_connected": ("agent", OF_AGENT),
    "agent_disconnected": ("agent", {**OF_AGENT, "reason": "bye"}),
    "agent_lifecycle": ("agent", {**OF_AGENT, "lifecycle": "ready"}),
    "agent_activity": ("agent", OF_AGENT),
}


def envelope(name: str = "tool_requested", **changes: Any) -> dict[str, Any]:
    """Return a valid CloudEvent of that type with these attributes changed; None drops one."""
    kind, data = VALID[name]
    usual = {
        "id": uid("id"),
        "time": "2024-05-06T07:08:09Z",
        "datacontenttype": "application/json",
    }
    return cloud_event(name, SOURCES[kind], CHAT, data, **(usual | changes))


def read(
    body: object, kind: str = "tool", *, chat: str = CHAT, sender: str | None = None, **more: Any
) -> Event | Rejected:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    options: dict[str, Any] = {"content_type": "application/cloudevents+json", "now": NOW} | more
    return decode(kind, chat, sender or SENDERS[kind], data, **options)


def refused(found: Event | Rejected) -> tuple[RejectReason, str | None]:
    assert isinstance(found, Rejected), found
    assert found.detail
    return found.reason, found.call_id


def text(json_text: str) -> bytes:
    """Return a tool request whose `args` contain this piece of JSON."""
    return json.dumps(envelope()).replace(f'"{uid("t")}"', json_text).encode()


def test_every_inbound_type_of_the_contract_is_covered_here() -> None:
    named = {model.name: kind for kind, models in BY_KIND.items() for model in models}  # type: ignore[attr-defined]

    assert named == {name: kind for name, (kind, _) in VALID.items()}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_event_is_read_completely(name: str) -> None:
    kind, data = VALID[name]
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    found = read(envelope(name, traceparent=trace), kind)

    assert isinstance(found, Event)
    assert (found.source, found.id, found.chat_id) == (SOURCES[kind], uid("id"), CHAT)
    assert found.time == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert found.traceparent == trace
    assert found.type == f"workspaced.{name}.v1"
    said = json.loads(found.data.model_dump_json())
    assert {key: said[key] for key in data if key != "agents"} == {
        key: value for key, value in data.items() if key != "agents"
    }


@pytest.mark.parametrize("name", VALID)
def test_an_event_survives_the_round_trip_through_json(name: str) -> None:
    kind, _ = VALID[name]
    found = read(envelope(name), kind)
    assert isinstance(found, Event)

    again = read(
        encode(name, found.source, CHAT, found.data, event_id=found.id, time=found.time), kind
    )

    assert again == found
    assert event_of(json.loads(written(found))) == found


@pytest.mark.parametrize("name", VALID)
def test_unknown_keys_are_ignored(name: str) -> None:
    kind, data = VALID[name]

    found = read(envelope(name, data={**data, "new": [1]}, extension="x"), kind)

    assert found == read(envelope(name), kind)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, (_, data) in VALID.items()
        for key in data
        if key not in ("args", "error", "reason", "quota", "template_version_id", "agents")
        and key not in ("exit_code", "signal", "output")
        and name != "build_cancel_requested"
        and not (name == "agent_exited" and key == "build_number")
        and not (name == "workspace_deleted" and key != "workspace_id")
    ],
)
def test_a_required_key_that_is_missing_is_bad_data(name: str, key: str) -> None:
    kind, data = VALID[name]

    reason, _ = refused(
        read(envelope(name, data={k: v for k, v in data.items() if k != key}), kind)
    )

    assert reason is RejectReason.BAD_DATA


WRONG_DATA: list[tuple[str, dict[str, Any]]] = [
    ("tool_requested", {"call_id": "a b"}),
    ("tool_requested", {"call_id": "x" * 129}),
    ("tool_requested", {"call_id": ""}),
    ("tool_requested", {"call_id": "call\n"}),
    ("tool_requested", {"args": []}),
    ("tool_requested", {"tool": 1}),
    ("tool_requested", {"organization_id": uid("org").upper()}),
    ("tool_requested", {"organization_id": f"{{{uid('org')}}}"}),
    ("tool_requested", {"owner_id": uid("ann").replace("-", "")}),
    ("tool_requested", {"owner_id": uid("ann") + "\n"}),
    ("tool_requested", {"owner_name": ""}),
    ("build_started", {"build_number": 1.5}),
    ("build_started", {"build_number": "1"}),
    ("build_started", {"build_number": -1}),
    ("build_started", {"build_number": True}),
    ("build_started", {"build_number": 2**63}),
    ("build_started", {"transition": "restart"}),
    ("build_started", {"workspace_id": "w"}),
    ("build_succeeded", {"workspace_id": uid("w").upper()}),
    ("build_failed", {"build_id": ""}),
    ("build_canceled", {"transition": None}),
    ("workspace_deleted", {"workspace_id": None}),
    ("agent_connected", {"sequence": -1}),
    ("agent_connected", {"sequence": None}),
    ("agent_connected", {"sequence": 2**63}),
    ("agent_disconnected", {"sequence": None}),
    ("agent_lifecycle", {"lifecycle": "happy"}),
    ("agent_lifecycle", {"agent_id": uid("another")}),
]


@pytest.mark.parametrize(("name", "changes"), WRONG_DATA)
def test_a_wrong_value_is_bad_data(name: str, changes: dict[str, Any]) -> None:
    kind, data = VALID[name]

    reason, _ = refused(read(envelope(name, data={**data, **changes}), kind))

    assert reason is RejectReason.BAD_DATA


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        (2**63, "is 9223372036854775808, but it must be less than 2^63 (9223372036854775808)"),
        (-1, "is -1, but it must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_number_and_its_limit(
    sequence: int, words: str
) -> None:
    kind, data = VALID["agent_connected"]

    found = read(envelope("agent_connected", data={**data, "sequence": sequence}), kind)

    assert isinstance(found, Rejected)
    assert found.detail == f"data.sequence {words}"


def test_a_request_that_needs_no_data_may_leave_it_out() -> None:
    body = envelope("delete_requested")
    body["data"] = None
    assert isinstance(read(body), Event)
    del body["data"]
    assert isinstance(read(body), Event)


@pytest.mark.parametrize("data", [None, [], "x", 5])
def test_data_must_be_an_object(data: object) -> None:
    assert refused(read(envelope(data=data)))[0] is RejectReason.BAD_DATA


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{} {}",
        b"nil",
        b"\xff\xfe{\x00}\x00",
        json.dumps(envelope()).encode("utf-16"),
        text('"\xff"').decode().encode("latin-1"),
        b'"\xed\xa0\x80"',
        text("NaN"),
        text("Infinity"),
        text("-Infinity"),
        text("01"),
        text("'x'"),
        text("1,"),
    ],
)
def test_text_that_is_not_json_is_rejected_as_not_json(body: bytes) -> None:
    assert refused(read(body))[0] is RejectReason.NOT_JSON


@pytest.mark.parametrize(
    "piece",
    [
        '"a\\u0000b"',
        '{"a\\u0000": 1}',
        '"\\ud800"',
        '"\\udfff x"',
        '{"\\ud800": 1}',
        "1e999",
        "-1e999",
        "1" * 400,
        "-" + "1" * 400,
        "1" * 5000,
        "[" * 33 + "]" * 33,
        '{"a":' * 33 + "1" + "}" * 33,
        "[" * 5000 + "]" * 5000,
    ],
)
def test_data_that_cannot_be_stored_is_rejected_and_its_call_is_answered(piece: str) -> None:
    reason, call_id = refused(read(text(piece)))

    assert reason is RejectReason.BAD_DATA
    assert call_id == "call-1"


def nested(depth: int) -> dict[str, Any]:
    """Return a tool request that is nested exactly that deep."""
    value: object = 1
    for _ in range(depth - 3):
        value = [value]
    return envelope(data={**TOOL, "args": {"deep": value}})


def test_an_event_may_be_32_deep_and_no_deeper() -> None:
    assert isinstance(read(nested(32)), Event)
    assert refused(read(nested(33)))[0] is RejectReason.BAD_DATA


def test_large_and_small_numbers_that_a_double_holds_are_fine() -> None:
    for piece in ("1e308", "-1e-320", "1" * 300, "0.1", "12345678901234567890"):
        assert isinstance(read(text(piece)), Event), piece


def test_odd_texts_that_a_store_holds_are_kept() -> None:
    for piece in ("\ud83d\ude00", "\x01\x1f\x7f", "\uffff\ufeff", "é" * 100):
        found = read(text(json.dumps(piece)))

        assert isinstance(found, Event)
        assert isinstance(found.data, events.ToolRequested)
        assert found.data.args["template_id"] == piece.encode("utf-16", "surrogatepass").decode(
            "utf-16"
        )


def test_the_last_value_of_a_duplicate_key_counts() -> None:
    body = json.dumps(envelope()).replace('"call_id": "call-1"', '"call_id": "x", "call_id": "y"')

    found = read(body.encode())

    assert isinstance(found, Event)
    assert isinstance(found.data, events.ToolRequested)
    assert found.data.call_id == "y"


@pytest.mark.parametrize(
    "changes",
    [
        {"specversion": "0.3"},
        {"specversion": 1.0},
        {"specversion": None},
        {"id": None},
        {"id": ""},
        {"id": 5},
        {"id": "x" * 1025},
        {"source": None},
        {"type": None},
        {"subject": None},
        {"time": 5},
        {"time": "yesterday"},
        {"time": "1700000000"},
        {"time": "2024-05-06"},
        {"time": "20240506T070809Z"},
        {"time": "2024-W19-1T07:08:09Z"},
        {"time": "2024-05-06T07:08Z"},
        {"time": "2024-05-06T07:08:09,5Z"},
        {"time": "2024-05-06T24:00:00Z"},
        {"time": "2024-13-01T00:00:00Z"},
        {"time": "0001-01-01T00:00:00+01:00"},
        {"time": "9999-12-31T23:59:59-01:00"},
        {"traceparent": 5},
    ],
)
def test_an_object_without_the_attributes_of_a_cloudevent_is_rejected(
    changes: dict[str, Any],
) -> None:
    body = envelope(**changes)

    assert refused(read(body)) == (RejectReason.NOT_CLOUDEVENTS, "call-1")


@pytest.mark.parametrize("body", [[], "x", 5, None, True])
def test_json_that_is_not_an_object_is_rejected(body: object) -> None:
    assert refused(read(body)) == (RejectReason.NOT_CLOUDEVENTS, None)


@pytest.mark.parametrize(
    ("content_type", "accepted"),
    [
        (None, True),
        ("application/cloudevents+json", True),
        ("Application/CloudEvents+JSON; charset=utf-8", True),
        ("application/json", False),
        ("application/cloudevents+jsonx", False),
        ("application/cloudevents-batch+json", False),
        ("", True),
    ],
)
def test_the_content_type_must_fit_if_it_is_present(
    content_type: str | None, accepted: bool
) -> None:
    found = read(envelope(), content_type=content_type)

    if accepted:
        assert isinstance(found, Event)
    else:
        assert refused(found) == (RejectReason.NOT_CLOUDEVENTS, "call-1")


@pytest.mark.parametrize(
    ("sent", "read_as"),
    [
        ("2024-05-06T07:08:09Z", "2024-05-06T07:08:09.000000Z"),
        ("2024-05-06T07:08:09.123456789Z", "2024-05-06T07:08:09.123456Z"),
        ("2024-05-06T07:08:09+05:30", "2024-05-06T01:38:09.000000Z"),
        ("2024-05-06T07:08:09-11:00", "2024-05-06T18:08:09.000000Z"),
        ("2024-05-06t07:08:09z", "2024-05-06T07:08:09.000000Z"),
        ("2024-05-06T07:08:09", "2024-05-06T07:08:09.000000Z"),
        ("1969-12-31T23:59:59Z", "1969-12-31T23:59:59.000000Z"),
        (None, timestamp(NOW)),
    ],
)
def test_a_time_of_any_offset_is_shown_in_utc(sent: str | None, read_as: str) -> None:
    found = read(envelope(time=sent))

    assert isinstance(found, Event)
    assert json.loads(written(found))["time"] == read_as


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("tool", "workspaced.tool_requested.v2"),
        ("tool", "workspaced.tool_requested.v0"),
        ("tool", "workspaced.tool_requested.v01"),
        ("tool", "workspaced.tool_requested.v1\n"),
        ("tool", "workspaced.tool_requested"),
        ("tool", "tool_requested.v1"),
        ("tool", "workspaced.unheard_of.v1"),
        ("tool", "workspaced.build_started.v1"),
        ("tool", "workspaced.build_requested.v1"),
        ("tool", "workspaced.deadline_passed.v1"),
        ("tool", "workspaced.state_changed.v1"),
        ("provisioner", "workspaced.agent_connected.v1"),
        ("agent", "workspaced.workspace_deleted.v1"),
    ],
)
def test_a_type_of_another_subject_or_a_later_version_is_a_bad_type(kind: str, type_: str) -> None:
    name = next(name for name, (of, _) in VALID.items() if of == kind)

    assert refused(read(envelope(name, type=type_), kind))[0] is RejectReason.BAD_TYPE


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tool_requested", "/chat/chat-2"),
        ("tool_requested", "chat-1"),
        ("tool_requested", "/chat/chat-1/"),
        ("tool_requested", "/provisioner/chat-1"),
        ("tool_requested", "/workspaced"),
        ("build_started", "/provisioner/other"),
        ("build_started", "/chat/local"),
        ("agent_connected", f"/agent/{uid('another')}"),
        ("agent_disconnected", "/workspaced"),
    ],
)
def test_a_source_that_is_not_the_sender_is_a_bad_source(name: str, source: str) -> None:
    kind, _ = VALID[name]

    assert refused(read(envelope(name, source=source), kind))[0] is RejectReason.BAD_SOURCE


@pytest.mark.parametrize("sender", ["ä", "a b", "x" * 129])
def test_an_invalid_sender_name_is_a_bad_source(sender: str) -> None:
    found = read(envelope(source=f"/chat/{sender}"), sender=sender)

    assert refused(found)[0] is RejectReason.BAD_SOURCE


def test_the_subject_must_be_the_chat_of_the_nats_subject() -> None:
    assert refused(read(envelope(subject=uid("other")))) == (RejectReason.CHAT_MISMATCH, "call-1")
    assert refused(read(envelope(subject=CHAT.upper())))[0] is RejectReason.CHAT_MISMATCH


@pytest.mark.parametrize("chat", ["chat-1", CHAT.upper(), CHAT.replace("-", ""), CHAT + "\n"])
def test_a_chat_id_must_be_a_uuid_in_lower_case(chat: str) -> None:
    assert refused(read(envelope(subject=chat), chat=chat))[0] is RejectReason.BAD_DATA


def test_a_message_of_256_kib_is_read_and_a_larger_one_is_answered() -> None:
    room = MAX_SIZE - len(json.dumps(envelope(data={**TOOL, "args": {"x": ""}})))
    largest, larger = (
        json.dumps(envelope(data={**TOOL, "args": {"x": "y" * size}})).encode()
        for size in (room, room + 1)
    )

    assert len(largest) == MAX_SIZE == 256 * 1024
    assert isinstance(read(largest), Event)
    assert refused(read(larger)) == (RejectReason.TOO_LARGE, "call-1")


def test_only_a_dead_letter_of_kind_tool_with_a_readable_call_is_answered() -> None:
    late = read(envelope(type="workspaced.tool_requested.v9"))
    assert isinstance(late, Rejected)
    assert (late.call_id, late.tool) == ("call-1", "create_workspace")

    unreadable = envelope(data={**TOOL, "call_id": "a b"})
    assert refused(read(unreadable)) == (RejectReason.BAD_DATA, None)
    foreign = envelope("build_started", data={**OF_BUILD, "build_number": "x", "call_id": "c"})
    assert refused(read(foreign, "provisioner")) == (RejectReason.BAD_DATA, None)


def test_an_error_names_the_path_of_the_wrong_value() -> None:
    found = read(envelope(data={**TOOL, "owner_id": "x", "call_id": 5}))

    assert isinstance(found, Rejected)
    assert "data.owner_id" in found.detail
    assert "data.call_id" in found.detail


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_rejected(body: bytes) -> None:
    assert isinstance(read(body), Rejected)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(VALID)),
    st.dictionaries(st.sampled_from(sorted({*TOOL, *OF_BUILD, *OF_AGENT})), anything, max_size=3),
)
def test_any_data_is_read_or_rejected(name: str, changes: dict[str, Any]) -> None:
    """An event that was read also survives being written to the log and read from it."""
    kind, data = VALID[name]

    found = read(envelope(name, data={**data, **changes}), kind)

    if isinstance(found, Event):
        assert event_of(json.loads(written(found))) == found
    else:
        assert found.reason is RejectReason.BAD_DATA


EVENTS = [
    requested(),
    started(1, workspace_name="w", owner_name="ann", template_id=uid("t")),
    succeeded(made=agents("a", kid="a")),
    failed(code="E", quota=events.Quota(credits_consumed=1.5, budget=2)),
    canceled(),
    deleted(),
    connected(1),
    disconnected(2),
    lost(),
    *(lifecycle(n, life) for n, life in enumerate(Lifecycle)),
    deadline(3),
    resumed(),
    event(events.TtlPassed(build_id=uid("b"))),
    event(events.ToolRequested.model_validate(TOOL)),
    event(events.ToolCanceled(call_id="c")),
    event(events.DeleteRequested()),
]


@pytest.mark.parametrize("made", EVENTS, ids=lambda made: made.data.name)
def test_every_kind_of_logged_event_is_read_back(made: Event) -> None:
    """Including workspaced's own events, such as the loss of an agent, which has no sequence."""
    assert event_of(json.loads(written(made))) == made


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "workspaced.nothing.v1"},
        {"type": "workspaced.build_started.v7"},
        {"data": {}},
        {"time": "never"},
        {"type": 5},
    ],
)
def test_a_logged_event_that_cannot_be_read_is_a_value_error(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        event_of(json.loads(written(started())) | broken)


def test_an_older_schema_version_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of version 1 stay readable for ever; the frozen ones are in replay/logs."""
    from statemachine import codec  # noqa: PLC0415

    def lifted(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "error": old["reason"]}

    monkeypatch.setitem(UPCASTS, ("build_failed", 1), lifted)
    monkeypatch.setitem(codec.CURRENT, "build_failed", 2)
    old = envelope("build_failed", data={**OF_BUILD, "reason": "full"})

    first = read(old, "provisioner")
    second = read(envelope("build_failed", type="workspaced.build_failed.v2"), "provisioner")

    assert isinstance(first, Event)
    assert isinstance(first.data, events.BuildFailed)
    assert first.data.error == "full"
    assert isinstance(second, Event)
    third = envelope("build_failed", type="workspaced.build_failed.v3")
    assert refused(read(third, "provisioner"))[0] is RejectReason.BAD_TYPE


@pytest.mark.parametrize(
    "day", ["2024-02-29", "2023-02-29", "0001-01-01", "9999-12-31", "2024-13-01"]
)
@pytest.mark.parametrize("clock", ["07:08:09", "23:59:59", "24:00:00", "07:60:00", "23:59:60"])
@pytest.mark.parametrize("fraction", ["", ".1", ".1234567", ".9999999", f".{'1' * 20}"])
def test_a_time_is_the_same_however_utc_is_written(day: str, clock: str, fraction: str) -> None:
    times = [
        getattr(read(envelope(time=f"{day}{separator}{clock}{fraction}{zone}")), "time", None)
        for separator in "Tt "
        for zone in ("Z", "+00:00", "z", "-00:00", "")
    ]

    exists = day not in ("2023-02-29", "2024-13-01") and clock not in ("24:00:00", "07:60:00")
    assert (times[0] is not None) is exists
    assert set(times) == {times[0]}


def test_times_are_shown_in_utc_to_the_microsecond() -> None:
    at = datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    assert timestamp(at) == "2023-12-31T23:00:00.000000Z"
