"""The codec accepts other spellings of a value, but no value with an unclear meaning (§1)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import ServiceError
from handlers.gateway import requests
from handlers.publishing.build_log import read_log_line
from statemachine import events
from statemachine.arguments import (
    BadArguments,
    CreateArguments,
    ListArguments,
    StartArguments,
    arguments,
)
from statemachine.codec import MAX_SIZE, Rejected, event_of, written
from statemachine.events import Event
from statemachine.replay import replay
from statemachine.states import State
from statemachine.strict_json import RejectReason, parse
from tests.unit.facts import CHAT, NOW, chat, requested, uid
from tests.unit.logs import recorded
from tests.unit.test_codec import AGENT, OF_AGENT, OF_BUILD, TOOL, VALID, envelope, read, refused

BOM = b"\xef\xbb\xbf"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HUGE = "1" * 400


def told(name: str, **changes: Any) -> Event:
    """Return the event of a message whose `data` has these changes."""
    kind, data = VALID[name]
    found = read(envelope(name, data={**data, **changes}), kind)
    assert isinstance(found, Event), found
    return found


def raw(name: str, piece: str, **changes: Any) -> Event:
    """Return the event of a message in which a piece of raw JSON replaces "@"."""
    kind, data = VALID[name]
    body = json.dumps(envelope(name, data={**data, **changes})).replace('"@"', piece)
    found = read(body.encode("utf-8", "surrogatepass"), kind)
    assert isinstance(found, Event), found
    return found


# -- different spellings of the same value ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tool_requested", "args", None),
        ("delete_requested", "reason", None),
        ("delete_requested", "reason", ""),
        ("build_started", "workspace_name", ""),
        ("build_started", "owner_name", None),
        ("build_started", "template_id", ""),
        ("build_started", "template_version_id", ""),
        ("build_succeeded", "template_version_id", ""),
        ("build_succeeded", "agents", None),
        ("build_failed", "error", None),
        ("build_failed", "error_code", ""),
        ("build_failed", "quota", None),
        ("workspace_deleted", "build_id", ""),
        ("workspace_deleted", "build_number", None),
        ("agent_disconnected", "reason", ""),
    ],
)
def test_null_and_empty_optional_values_count_as_absent(name: str, key: str, value: object) -> None:
    kind, data = VALID[name]
    absent = read(envelope(name, data={k: v for k, v in data.items() if k != key}), kind)

    found = told(name, **{key: value})

    assert found == absent
    assert found.notice is None


@pytest.mark.parametrize("key", ["time", "traceparent"])
@pytest.mark.parametrize("value", ["null", '""'])
@pytest.mark.parametrize("name", ["tool_requested", "build_failed", "agent_connected"])
def test_null_and_empty_time_and_traceparent_count_as_absent(
    name: str, key: str, value: str
) -> None:
    kind, _ = VALID[name]
    body = json.dumps(envelope(name, **{key: "@"})).replace('"@"', value)

    found = read(body.encode(), kind)

    assert found == read(envelope(name, **{key: None}), kind)
    assert isinstance(found, Event)
    assert found.notice is None


def test_an_empty_parent_and_a_null_order_of_an_agent_count_as_absent() -> None:
    listed = {"id": AGENT, "name": "main", "parent_id": "", "display_order": None}

    found = told("build_succeeded", agents=[listed])

    assert found.data == told("build_succeeded").data
    assert found.notice is None


@pytest.mark.parametrize("number", ["2.0", "2e0", "20e-1", "0.2e1", "2.000", "2"])
def test_a_number_without_a_fraction_is_an_integer_in_any_spelling(number: str) -> None:
    build = raw("build_canceled", number, build_number="@")
    agent = raw("agent_connected", number, sequence="@")
    listed = [{"id": AGENT, "name": "main", "display_order": "@"}]
    order = raw("build_succeeded", number, agents=listed)

    assert getattr(build.data, "build_number", None) == 2
    assert getattr(agent.data, "sequence", None) == 2
    assert isinstance(order.data, events.BuildSucceeded)
    assert order.data.agents[0].display_order == 2
    assert not any(found.notice for found in (build, agent, order))


@pytest.mark.parametrize("number", ["2.5", '"2"', "true", "-1.0", "1e300", "9007199254740992.0"])
def test_a_value_that_is_not_an_integer_is_rejected_in_a_required_field(number: str) -> None:
    body = json.dumps(envelope("build_failed", data={**OF_BUILD, "build_number": "@"}))

    found = read(body.replace('"@"', number).encode(), "provisioner")

    assert isinstance(found, Rejected)
    assert "data.build_number" in found.detail


@pytest.mark.parametrize("name", VALID)
def test_a_byte_order_mark_at_the_beginning_is_skipped(name: str) -> None:
    kind, _ = VALID[name]
    body = json.dumps(envelope(name)).encode()

    assert read(BOM + body, kind) == read(body, kind)
    assert isinstance(read(BOM + BOM + body, kind), Rejected)


def test_an_invalid_request_with_a_byte_order_mark_is_answered() -> None:
    body = BOM + json.dumps(envelope(data={**TOOL, "owner_id": "me"})).encode()

    assert refused(read(body)) == (RejectReason.BAD_DATA, "call-1")


@pytest.mark.parametrize(
    "written_as", ["2016-12-31T23:59:60Z", "2016-12-31T23:59:60.5Z", "2016-12-31T18:59:60-05:00"]
)
@pytest.mark.parametrize("name", ["tool_requested", "build_failed"])
def test_second_60_is_the_end_of_the_second_before_it(name: str, written_as: str) -> None:
    kind, _ = VALID[name]

    found = read(envelope(name, time=written_as), kind)

    assert isinstance(found, Event)
    assert json.loads(written(found))["time"] == "2016-12-31T23:59:59.999999Z"


@pytest.mark.parametrize("second", ["61", "99"])
def test_seconds_above_60_are_rejected(second: str) -> None:
    body = envelope(time=f"2016-12-31T23:59:{second}Z")

    assert refused(read(body))[0] is RejectReason.NOT_CLOUDEVENTS


def test_the_last_value_of_a_duplicate_key_counts_everywhere() -> None:
    body = json.dumps(envelope("build_failed")).replace(
        '"error": "no"', '"error": "\\ud800", "error": "one", "error": "two"'
    )
    found = read(body.encode(), "provisioner")

    assert isinstance(found, Event)
    assert isinstance(found.data, events.BuildFailed)
    assert found.data.error == "two"
    twice = f'{{"chat_id": "x", "chat_id": "{CHAT}"}}'
    assert requests.parse_body(requests.ChatBody, twice.encode())[0].chat_id == CHAT


@pytest.mark.parametrize(
    "changes", [{"sequence": 3.0}, {"build_id": ""}, {"build_id": None}, {"extra": None}]
)
def test_log_lines_are_read_with_the_same_leniency(changes: dict[str, Any]) -> None:
    build = uid("b")
    line = {"build_id": build, "origin": "agent", "stage": "s", "level": "info", "output": "o"}
    line |= {"sequence": 3, **changes}

    found = read_log_line(BOM + json.dumps({"data": line}).encode(), build)

    assert found is not None
    given = {key: value for key, value in line.items() if value is not None}
    assert {**found, "build_id": build} == {**given, "build_id": build, "sequence": 3}
    assert type(found["sequence"]) is int


# -- requests with an unclear meaning are refused ----------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"owner_id": uid("ann").upper()}, "lower-case"),
        ({"owner_id": ""}, "data.owner_id is required"),
        ({"owner_name": None}, "data.owner_name is required"),
        ({"owner_name": "x" * 256}, "data.owner_name"),
        ({"args": []}, "data.args is not an object"),
        ({"args": ""}, "data.args is not an object"),
        ({"tool": 5}, "data.tool is not a text"),
        ({"call_id": "functions.x:0"}, "data.call_id must be 1 to 128 of"),
    ],
)
def test_the_error_of_a_request_names_the_wrong_field(changes: dict[str, Any], words: str) -> None:
    found = read(envelope(data={**TOOL, **changes}))

    assert isinstance(found, Rejected)
    assert words in found.detail


def test_rpc_bodies_are_read_with_the_same_leniency() -> None:
    body = {
        "chat_id": CHAT,
        "call_id": "",
        "owner_id": uid("ann"),
        "owner_name": "ann",
        "organization_id": uid("org"),
        "args": None,
    }

    found, ignored = requests.parse_body(requests.ToolBody, BOM + json.dumps(body).encode())

    assert (found.call_id, found.args, ignored) == (None, {}, [])
    listing = b'{"organization_id": "", "owner_id": null, "state": "", "cursor": ""}'
    assert requests.parse_body(requests.ChatsBody, listing)[0] == requests.ChatsBody()
    page = f'{{"chat_id": "{CHAT}", "after": 2e0}}'.encode()
    assert requests.parse_body(requests.EventsBody, page)[0].after == 2
    offset = f'{{"version_id": "{CHAT}", "offset": null}}'.encode()
    assert requests.parse_body(requests.ArchiveBody, offset)[0].offset == 0
    issued = b'{"role": "provisioner", "name": "p", "pool": "cpu", "chat_ids": null}'
    assert requests.parse_body(requests.IssueBody, issued)[0].chat_ids == ()


@pytest.mark.parametrize(
    "chat_ids", [None, [], [""], [None], "", {}, [uid("a").upper()], [uid("a"), 1]]
)
def test_lists_that_grant_rights_are_never_repaired(chat_ids: object) -> None:
    body = json.dumps({"chat_ids": chat_ids}).encode()

    with pytest.raises(ServiceError, match=r"body\.chat_ids"):
        requests.parse_body(requests.FrontendCredentialBody, body)


def test_unknown_keys_of_a_body_are_named() -> None:
    body = {"chat_id": CHAT, "chatid": CHAT, "build": None, "After": 3}

    found, ignored = requests.parse_body(requests.EventsBody, json.dumps(body).encode())

    assert found == requests.EventsBody(chat_id=CHAT)
    assert ignored == ["chatid", "After"], "null counts as absent"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (requests.FrontendCredentialBody, {"chat_ids": [CHAT]}),
        (requests.IssueBody, {"role": "operator"}),
        (
            requests.AgentCredentialBody,
            {"chat_id": CHAT, "workspace_id": CHAT, "build_id": CHAT, "agent_id": CHAT},
        ),
    ],
)
def test_a_body_that_grants_something_may_not_have_unknown_keys(
    model: type[requests.Granting], body: dict[str, Any]
) -> None:
    with pytest.raises(ServiceError, match=r"^400 body\.ttl is not a key of this request$"):
        requests.parse_body(model, json.dumps({**body, "ttl": 60}).encode())

    _, ignored = requests.parse_body(model, json.dumps({**body, "ttl": None}).encode())
    assert ignored == []


def test_a_body_over_512_kib_is_too_large() -> None:
    body = f'{{"chat_id": "{CHAT}"}}'.encode().ljust(512 * 1024)

    assert requests.parse_body(requests.ChatBody, body)[0].chat_id == CHAT
    with pytest.raises(ServiceError, match=r"^413 "):
        requests.parse_body(requests.ChatBody, body + b" ")


def test_arguments_are_read_with_the_same_leniency() -> None:
    listing = arguments(ListArguments, {"page": 2.0, "query": None})
    create = arguments(
        CreateArguments,
        {"template_id": uid("t"), "name": "", "preset_id": " ", "parameters": {"a": None, "b": ""}},
    )
    start = arguments(StartArguments, {"parameters": None})

    assert isinstance(listing, ListArguments)
    assert (listing.page, listing.query) == (2, None)
    assert isinstance(create, CreateArguments)
    assert (create.preset, create.problem()) == (None, None)
    assert create.parameters == {"b": ""}
    assert isinstance(start, StartArguments)
    assert start.parameters is None


@pytest.mark.parametrize("page", ["2", 2.5, True, [2], ""])
def test_the_error_of_an_invalid_page_names_it(page: object) -> None:
    found = arguments(ListArguments, {"page": page})

    assert isinstance(found, BadArguments)
    assert found.message == "args.page is not an integer"


# -- facts are not refused because of a detail -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("build_started", "workspace_name", 5),
        ("build_started", "owner_name", {}),
        ("build_started", "template_id", "not-a-uuid"),
        ("build_started", "template_version_id", uid("v").upper()),
        ("build_succeeded", "template_version_id", 7),
        ("build_succeeded", "agents", {}),
        ("build_succeeded", "agents", "main"),
        ("build_failed", "error", 5),
        ("build_failed", "error", ["a", "b"]),
        ("build_failed", "error", {"message": "x"}),
        ("build_failed", "error_code", 404),
        ("build_failed", "quota", "10 of 5"),
        ("build_failed", "quota", {"credits_consumed": "10", "budget": 5}),
        ("build_failed", "quota", {"budget": 5}),
        ("build_failed", "quota", [10, 5]),
        ("workspace_deleted", "build_id", "b-1"),
        ("workspace_deleted", "build_number", "last"),
        ("agent_disconnected", "reason", 5),
    ],
)
def test_an_unusable_optional_field_is_omitted(name: str, key: str, value: object) -> None:
    kind, data = VALID[name]
    absent = read(envelope(name, data={k: v for k, v in data.items() if k != key}), kind)
    assert isinstance(absent, Event)

    found = told(name, **{key: value})

    assert found.data == absent.data
    assert found.notice is not None
    assert f"data.{key}" in found.notice
    assert "left out" in found.notice


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "x"}, "data.agents[1].id is required"),
        ({"id": uid("x")}, "data.agents[1].name is required"),
        ({"id": None, "name": "x"}, "data.agents[1].id is required"),
        ({"id": uid("x"), "name": ""}, "data.agents[1].name is required"),
        ({"id": "x", "name": "x"}, "data.agents[1].id must be a lower-case UUID"),
        ({"id": uid("x").upper(), "name": "x"}, "data.agents[1].id must be a lower-case UUID"),
        ({"id": uid("x"), "name": 5}, "data.agents[1].name is not a text"),
        (
            {"id": uid("x"), "name": "x", "parent_id": "y"},
            "data.agents[1].parent_id must be a lower",
        ),
        ({"id": uid("x"), "name": "x", "parent_id": 5}, "data.agents[1].parent_id is not a text"),
        ({"id": AGENT, "name": "again"}, "data.agents[1].id was listed before"),
        (None, "data.agents[1] is not an object"),
        ("main", "data.agents[1] is not an object"),
        ([], "data.agents[1] is not an object"),
    ],
)
def test_an_unusable_agent_is_omitted(entry: object, words: str) -> None:
    listed = [{"id": AGENT, "name": "main"}, entry, {"id": uid("last"), "name": "last"}]

    found = told("build_succeeded", agents=listed)

    assert isinstance(found.data, events.BuildSucceeded)
    assert [agent.name for agent in found.data.agents] == ["main", "last"]
    assert found.notice is not None
    assert words in found.notice
    assert "data.agents[1] is left out" in found.notice or "data.agents[1] is not" in found.notice


@pytest.mark.parametrize("order", ["1", 1.5, [], True])
def test_an_agent_with_an_unusable_order_is_kept_without_it(order: object) -> None:
    found = told("build_succeeded", agents=[{"id": AGENT, "name": "main", "display_order": order}])

    assert found.data == told("build_succeeded").data
    assert found.notice == "data.agents[0].display_order is not an integer: left out"


def test_several_unusable_agents_are_named_by_their_original_index() -> None:
    good = {"id": AGENT, "name": "main"}
    listed = [{"id": None}, None, good, {"name": "x"}, good, {**good, "id": uid("z")}, 5]

    found = told("build_succeeded", agents=listed)

    assert isinstance(found.data, events.BuildSucceeded)
    assert [agent.id for agent in found.data.agents] == [AGENT, uid("z")]
    assert found.notice is not None
    for index in (0, 1, 3, 4, 6):
        assert f"data.agents[{index}]" in found.notice
    for index in (2, 5):
        assert f"data.agents[{index}]" not in found.notice


def test_any_number_of_agents_and_unknown_parents_are_accepted() -> None:
    listed = [{"id": uid(f"a{n}"), "name": f"a{n}", "parent_id": uid("nobody")} for n in range(900)]

    found = told("build_succeeded", agents=listed)

    assert isinstance(found.data, events.BuildSucceeded)
    assert len(found.data.agents) == 900
    assert found.data.agents[0].parent_id == uid("nobody")
    assert found.notice is None


def test_a_notice_of_many_errors_stays_short() -> None:
    listed: list[object] = [{"id": AGENT, "name": "main"}, *range(4_000)]

    found = told("build_succeeded", agents=listed)

    assert found.data == told("build_succeeded", template_version_id=uid("v")).data
    assert found.notice is not None
    assert len(found.notice) < 4_096
    assert "and 3980 more" in found.notice


@pytest.mark.parametrize(
    "piece",
    [
        "[" + ",".join(["0"] * 120_000) + "]",
        "[" + ",".join(['{"i":"\\u0000"}'] * 12_000) + "]",
        '"' + '\\"' * 120_000 + '\\ud800"',
        "[" * 240_000,
        "1" * 250_000,
    ],
    ids=["entries", "NULs", "quotes", "brackets", "digits"],
)
def test_a_hostile_fact_is_read_in_linear_time(piece: str) -> None:
    """An algorithm of quadratic time would take minutes for some of these."""
    kind, data = VALID["build_succeeded"]
    body = json.dumps(envelope("build_succeeded", data={**data, "agents": "@"}))
    begun = time.process_time()

    found = read(body.replace('"@"', piece).encode(), kind)

    assert time.process_time() - begun < 10
    assert isinstance(found, Event) or found.reason is RejectReason.NOT_JSON


def test_a_notice_does_not_repeat_unstorable_or_very_long_keys() -> None:
    found = told("build_canceled", unknown={"\ud800\0": "\0", "x" * 100_000: "\ud800"})

    assert found.notice is not None
    assert "data.unknown.\ufffd\ufffd" in found.notice
    assert len(found.notice) < 1_000
    parse(written(found))


@pytest.mark.parametrize(
    ("name", "key", "limit", "end"),
    [
        ("build_failed", "error", 65_536, True),
        ("build_failed", "error_code", 4_096, False),
        ("build_started", "workspace_name", 4_096, False),
        ("build_started", "owner_name", 4_096, False),
        ("agent_disconnected", "reason", 4_096, True),
    ],
)
@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_a_text_that_is_too_long_is_cut(
    name: str, key: str, limit: int, letter: str, *, end: bool
) -> None:
    fits = "A" + letter * ((limit - 2) // len(letter.encode())) + "Z"
    long = "A" + letter * (limit // len(letter.encode())) + "Z"

    whole, cut = told(name, **{key: fits}), told(name, **{key: long})

    assert (getattr(whole.data, key), whole.notice) == (fits, None)
    left = getattr(cut.data, key)
    assert limit - 4 < len(left.encode()) <= limit
    assert (left[0], left[-1]) == ((letter, "Z") if end else ("A", letter))
    assert cut.notice == f"data.{key} is longer than {limit} bytes: cut"


def test_the_name_of_an_agent_is_cut_too() -> None:
    found = told("build_succeeded", agents=[{"id": AGENT, "name": "x" * 5_000}])

    assert isinstance(found.data, events.BuildSucceeded)
    assert found.data.agents[0].name == "x" * 4_096


@pytest.mark.parametrize(
    ("piece", "kept"),
    [
        ('"a\\u0000b"', "a\ufffdb"),
        ('"\\ud800 end"', "\ufffd end"),
        ('"\\udc00\\ud800"', "\ufffd\ufffd"),
        ('"tab\there\x01"', "tab\there\x01"),
        ("1e999", ""),
        (HUGE, ""),
        ("NaN", ""),
        ("-Infinity", ""),
        ("[" * 40 + "]" * 40, ""),
        ('{"a":' * 5_000 + '"]"' + "}" * 5_000, ""),
    ],
)
def test_a_fact_loses_only_the_field_that_cannot_be_stored(piece: str, kept: str) -> None:
    found = raw("build_failed", piece, error="@")

    assert isinstance(found.data, events.BuildFailed)
    assert found.data.error == kept
    assert (found.notice is None) == ("\x01" in kept)
    unknown = raw("build_canceled", piece, unknown="@")
    assert isinstance(unknown.data, events.BuildCanceled)


def test_invalid_utf_8_is_replaced_and_the_rest_of_a_fact_is_kept() -> None:
    body = json.dumps(envelope("build_failed", data={**OF_BUILD, "error": "@"})).encode()

    found = read(body.replace(b'"@"', b'"caf\xe9"'), "provisioner")

    assert isinstance(found, Event)
    assert isinstance(found.data, events.BuildFailed)
    assert found.data.error == "caf\ufffd"
    assert found.notice is not None
    assert "UTF-8" in found.notice


@pytest.mark.parametrize(
    "changes",
    [{"id": "a\0b"}, {"id": "\ud800"}, {"source": "/provisioner/local\0"}, {"type": "x\0"}],
)
def test_the_identity_of_a_fact_is_never_repaired(changes: dict[str, Any]) -> None:
    found = read(envelope("build_failed", **changes), "provisioner")

    assert refused(found)[0] is RejectReason.BAD_DATA


@pytest.mark.parametrize("time_", ["yesterday", 5, ["x"], "2024-13-01T00:00:00Z", "\0", "9" * 99])
def test_an_unreadable_time_of_a_fact_is_omitted(time_: object) -> None:
    found = read(envelope("build_failed", time=time_), "provisioner")

    assert isinstance(found, Event)
    assert found.time == NOW
    assert found.notice is not None
    assert "'time'" in found.notice


@pytest.mark.parametrize("trace", ["x", TRACE.upper(), f"00-{'0' * 32}-b7ad6b7169203331-01", "\0"])
def test_an_invalid_traceparent_is_omitted(trace: str) -> None:
    found = read(envelope("build_failed", traceparent=trace), "provisioner")

    assert isinstance(found, Event)
    assert found.traceparent is None
    assert found.notice == "attribute 'traceparent' is no W3C trace context: left out"
    numbered = read(envelope("agent_connected", traceparent=5), "agent")
    assert isinstance(numbered, Event)


def test_an_invalid_traceparent_does_not_invalidate_a_request() -> None:
    found = read(envelope(traceparent="x"))

    assert isinstance(found, Event)
    assert found.traceparent is None


@pytest.mark.parametrize("name", ["build_succeeded", "build_failed", "build_canceled"])
@pytest.mark.parametrize("key", OF_BUILD)
@pytest.mark.parametrize("value", [None, "", "one", [], "absent"])
def test_a_terminal_fact_is_rejected_only_for_its_four_identifying_fields(
    name: str, key: str, value: object
) -> None:
    kind, data = VALID[name]
    changed = {k: v for k, v in data.items() if k != key}
    if value != "absent":
        changed[key] = value

    found = read(envelope(name, data=changed), kind)

    assert isinstance(found, Rejected)
    assert found.reason is RejectReason.BAD_DATA
    assert found.detail.startswith(f"data.{key} ")
    named = (None, "") if key == "build_id" else (uid("b"), name)
    assert (found.build_id, found.fact) == named


def test_a_fact_above_256_kib_is_rejected_but_its_build_is_named() -> None:
    found = read(
        envelope("build_failed", data={**OF_BUILD, "error": "x" * MAX_SIZE}), "provisioner"
    )

    assert isinstance(found, Rejected)
    assert (found.reason, found.build_id) == (RejectReason.TOO_LARGE, uid("b"))
    assert found.fact == "build_failed"


def test_a_fact_of_an_agent_never_counts_as_the_end_of_a_build() -> None:
    body = envelope("agent_connected", type="workspaced.build_failed.v1", data=OF_AGENT)

    found = read(body, "agent")

    assert isinstance(found, Rejected)
    assert (found.build_id, found.fact) == (uid("b"), "")


# -- any value in the optional fields ----------------------------------------------------------

ODD_TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ("", "\0", "\ud800", "x" * 70_000, "😀" * 20_000, uid("x"), uid("x").upper(), " ")
)
ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from((10**400, 2.0, 1e300, -0.0))
    | ODD_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS, inner, max_size=3),
    max_leaves=8,
) | st.integers(30, 200).map(lambda depth: json.loads("[" * depth + "]" * depth))
AGENTS = st.lists(
    ODD
    | st.fixed_dictionaries(
        {},
        optional={
            "id": st.sampled_from((AGENT, uid("x"), uid("y"))) | ODD,
            "name": st.sampled_from(("main", "x")) | ODD,
            "parent_id": st.sampled_from((AGENT, uid("x"))) | ODD,
            "display_order": st.integers(0, 3) | ODD,
        },
    ),
    max_size=5,
)
OPTIONAL: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "build_succeeded": {"template_version_id": ODD, "agents": AGENTS | ODD},
    "build_failed": {
        "error": ODD,
        "error_code": ODD,
        "quota": st.fixed_dictionaries({}, optional={"credits_consumed": ODD, "budget": ODD}) | ODD,
    },
    "build_canceled": {},
}


@settings(deadline=None, max_examples=300)
@given(data=st.data(), name=st.sampled_from(sorted(OPTIONAL)), bom=st.booleans())
def test_a_terminal_fact_with_any_optional_fields_is_accepted_and_folded(
    data: st.DataObject, name: str, *, bom: bool
) -> None:
    more = data.draw(st.fixed_dictionaries({}, optional={**OPTIONAL[name], "unknown": ODD}))
    around = data.draw(st.fixed_dictionaries({}, optional={"time": ODD, "traceparent": ODD}))
    ours = {"workspace_id": uid("w"), "build_id": uid("w/b1"), "build_number": 1}
    fact = {**more, **ours, "transition": "start"}
    body = json.dumps({**envelope(name, data=fact), **around}).encode()

    found = read(BOM + body if bom else body, "provisioner")

    if len(body) > MAX_SIZE - 3:
        return
    assert isinstance(found, Event), found
    parse(written(found))  # the store accepts it
    assert event_of(json.loads(written(found))) == found.model_copy(
        update={"beginnings_cut": frozenset()}  # the log does not contain this field
    )
    ended = chat(requested(), found)
    assert ended.state is not State.BUILDING
    log = list(recorded([requested(), found]))
    (folded,) = replay(json.loads(json.dumps(log))).values()
    assert folded.differences == ()
    assert ended.build is not None
    assert folded.chat.build is not None
    assert folded.chat.build.outcome == ended.build.outcome
