"""Text of other programs can't control a terminal, and processing it takes linear time."""

from __future__ import annotations

import json
import logging
import time

import pytest
from workspaced import Agent, Failure, Log, State

from bus import ServiceError
from handlers.cli.commands.chat import chat_fields, chat_row
from handlers.cli.commands.texts import describe
from handlers.cli.commands.tool import arguments
from handlers.cli.logs import JsonLines, Lines
from handlers.cli.output import as_json, note, plain, write_fields, write_lines, write_table
from handlers.errors import InvalidSettings
from handlers.gateway import requests
from handlers.publishing.build_log import read_log_line
from statemachine.parameters import Parameter, misfit
from statemachine.strict_json import Reject, RejectReason, parse
from statemachine.templates import EXPRESSION, PARAMETERS, TemplateError, read
from tests.rigs.messages import new_id

HOSTILE = (
    "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b1A\x1b(0\x08\x7f\x00\u202eexe\u2066\u2028x\u200f\ud800"
)
OBEYED = set("\x1b\x07\x08\x00\x7f\x9b\u202e\u2066\u2028\u200f\ud800")


def test_nothing_printed_for_people_is_interpreted_by_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = {
        "chat_id": HOSTILE,
        "state": HOSTILE,
        "version": 1,
        "workspace": {"owner_name": HOSTILE, "name": HOSTILE, "id": HOSTILE, "template_id": None},
        "build": None,
        "agent": {"name": HOSTILE, "status": HOSTILE, "lifecycle": None, "reason": HOSTILE},
        "failure": {"reason": HOSTILE, "message": HOSTILE},
        "deadline": None,
        "open_calls": [],
        "cause": None,
    }
    log = Log.model_construct(output=HOSTILE)
    change = State.model_construct(
        state=HOSTILE,
        version=1,
        time=None,
        agent=Agent.model_construct(name=HOSTILE, status=HOSTILE),
        failure=Failure.model_construct(reason=HOSTILE, message=HOSTILE),
    )

    write_table(("A",) * 6, [chat_row(chat)])
    write_fields(chat_fields(chat))
    write_lines([*describe(log), *describe(change)])
    for line in [HOSTILE, *describe(log), *describe(change)]:
        note(line)

    shown = "".join(capsys.readouterr())
    assert "red" in shown
    assert not OBEYED & set(shown)
    assert plain("ä → 日本 👩‍💻 \t ok\r\nnext\rlast") == "ä → 日本 👩‍💻 \t ok\nnext\nlast"


def test_escaped_json_keeps_its_meaning() -> None:
    shown = as_json({"a": HOSTILE, "b": "日本"})

    assert json.loads(shown) == {"a": HOSTILE, "b": "日本"}
    assert "日本" in shown
    assert not OBEYED & set(shown)
    shown.encode()


def test_any_text_is_one_line_in_the_log() -> None:
    record = logging.LogRecord("n", 30, "f", 1, "from %s", (f"a\nERROR forged {HOSTILE}",), None)

    people = Lines("%(levelname)s %(message)s").format(record)
    programs = JsonLines().format(record)

    for line in (people, programs):
        assert len(line.splitlines()) == 1
        assert not OBEYED & set(line)
    assert people.startswith("WARNING from a ERROR forged")


def test_each_line_of_a_record_is_one_line_in_the_log() -> None:
    lines = [(f"chat 1: moved {HOSTILE}", {"chat_id": "1"}), ("chat 2: moved", {"chat_id": "2"})]
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": "", "lines": lines})

    people = Lines("%(levelname)s %(message)s").format(record).splitlines()
    programs = JsonLines().format(record).splitlines()

    assert [json.loads(line)["chat_id"] for line in programs] == ["1", "2"]
    assert json.loads(programs[0])["message"] == f"chat 1: moved {HOSTILE}"
    assert people[1] == "INFO chat 2: moved"
    assert len(people) == 2
    assert not OBEYED & set("".join(people + programs))


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 33 + b"]" * 33])
def test_deep_nesting_is_rejected_in_every_kind_of_input(deep: bytes) -> None:
    for take, refused in (
        (parse, Reject),
        (lambda body: requests.parse_body(requests.ChatsBody, body), ServiceError),
    ):
        with pytest.raises(refused):
            take(deep)
    assert read_log_line(deep, new_id()) is None
    if len(deep) > 1000:
        with pytest.raises(InvalidSettings, match="nested too deep"):
            arguments([("a", "[" * 100_000)])


def test_deeply_nested_json_is_bad_data() -> None:
    with pytest.raises(Reject) as no:
        parse(b"[" * 33 + b"]" * 33)

    assert no.value.reason is RejectReason.BAD_DATA


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 20_000,
        "a = " + "{a = " * 10_000,
        ".".join("a" * 3_000) + " = 1",
        "[" + ".".join("a" * 3_000) + "]",
        "a = " + "[" * 40 + "]" * 40,
        "a = 1" + "0" * 5_000,
        "a = nan",
    ],
    ids=["arrays", "tables", "keys", "header", "nested", "number", "nan"],
)
def test_a_template_with_excessive_nesting_or_numbers_is_invalid(text: str) -> None:
    with pytest.raises(TemplateError):
        read(f'name = "bomb"\n{text}\n')


def test_the_number_of_parameters_and_the_length_of_expressions_are_limited() -> None:
    many = "".join(f'[[parameter]]\nname = "a{n}"\n' for n in range(PARAMETERS + 1))
    long = f'[[parameter]]\nname = "a"\nvalidation_regex = "{"a" * (EXPRESSION + 1)}"\n'
    for text in (many, long):
        with pytest.raises(TemplateError, match=r"at most|more than"):
            read(f'name = "large"\n[build]\nstart = ""\n{text}')


@pytest.mark.parametrize(
    "expression", ["^(a+)+$", "^(a|aa)+$", "(.*)*(.*)*(.*)*b", "(a{0,30}){0,30}$x"]
)
def test_matching_an_expression_takes_linear_time(expression: str) -> None:
    parameter = Parameter(name="a", validation_regex=expression)
    begun = time.perf_counter()

    assert misfit(parameter, "a" * 100_000 + "!") is not None

    assert time.perf_counter() - begun < 2  # a regular expression that backtracks would take years


def test_an_expression_that_needs_too_much_memory_is_invalid() -> None:
    for expression in ("((a{0,1000}){0,1000}){0,1000}", r"(a)\1", "(?=a)"):
        with pytest.raises(ValueError, match="RE2"):
            Parameter(name="a", validation_regex=expression)


def test_only_valid_log_lines_are_shown() -> None:
    build = new_id()
    line = {
        "build_id": build,
        "origin": "agent",
        "stage": "startup",
        "level": "info",
        "output": HOSTILE,
        "sequence": 1,
    }

    def said(**more: object) -> bytes:
        return json.dumps(
            {"type": "workspaced.state_changed.v1", "data": {**line, **more}}
        ).encode()

    assert read_log_line(said(), build) == line
    for wrong in (
        said(build_id=new_id()),
        said(origin="worker"),
        said(output=["x"]),
        said(sequence=True),
        b'{"data": 7}',
        b"[]",
        b"\xff",
        b"",
    ):
        assert read_log_line(wrong, build) is None
    for key in ("build_id", "stage"):  # null has the same meaning as a missing key
        assert read_log_line(said(**{key: None}), build) == {
            k: v for k, v in line.items() if k != key
        }
