"""`workspaced tool` converts its arguments to those of the tool."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.cli.command_table import command_parser
from handlers.cli.commands.tool import arguments

CHAT = "96146b6c-dc1c-46a3-8f84-c1858c73b45f"
TYPED: list[tuple[str, str, Any]] = [
    *(
        (key, text, text)
        for key in (
            "parameters.x",
            "name",
            "query",
            "template_id",
            "preset_id",
            "template",
            "preset",
        )
        for text in ("3.10", "1e5", "12e4567", "2024", "true", "null", "NaN", "", " 4", '{"a": 1}')
    ),
    ("parameters.x", '["a", "b"]', ["a", "b"]),
    ("parameters.x", '"[\\"a\\"]"', '["a"]'),
    ("parameters.x", '"3.10"', "3.10"),
    ("parameters.x", '"3.10', '"3.10'),
    ("parameters.x", "[main", "[main"),
    ("parameters.x", "[NaN]", "[NaN]"),
    ("parameters.x", "[1e999]", "[1e999]"),
    ("parameters.x", "a=b", "a=b"),
    ("name", '"2024"', "2024"),
    ("page", "2", 2),
    ("page", "two", "two"),
    ("page", "NaN", "NaN"),
    ("page", "1e999", "1e999"),
    ("parameters", '{"x": 4.0}', {"x": 4.0}),
]


@pytest.mark.parametrize(("key", "text", "value"), TYPED)
def test_text_arguments_stay_as_typed_and_others_are_read_as_json(
    key: str, text: str, value: Any
) -> None:
    *path, last = key.split(".")
    expected: Any = {last: value}
    for part in reversed(path):
        expected = {part: expected}

    flags = command_parser().parse_args(["tool", "t", "--chat", "new", "--arg", f"{key}={text}"])

    assert arguments(flags.arg, flags.args) == expected


def test_args_gives_all_arguments_and_arg_adds_to_them() -> None:
    words = [
        "tool",
        "t",
        "--chat",
        "new",
        "--args",
        '{"page": 2, "parameters": {"x": 4.0, "y": 1}}',
    ]

    assert arguments(
        command_parser().parse_args(words).arg, command_parser().parse_args(words).args
    ) == {
        "page": 2,
        "parameters": {"x": 4.0, "y": 1},
    }
    flags = command_parser().parse_args([*words, "--arg", "parameters.x=4.0"])
    assert arguments(flags.arg, flags.args)["parameters"] == {"x": "4.0", "y": 1}


def test_an_empty_flag_counts_as_absent() -> None:
    flags = command_parser().parse_args(["tool", "t", "--chat", "new", "--args", ""])

    assert arguments(flags.arg, flags.args) == {}


CHAT = "c74db0b2-5f0e-4a39-9f0d-3b6f1f3c2a11"


@pytest.mark.parametrize(
    "words",
    [
        ["workspace", "delete", "--all", "--older-than", ""],
        ["workspace", "delete", "--all", "--older-than="],
        ["workspace", "delete", "--all", "--older", ""],
        ["workspace", "delete", "--all", "--workspace", ""],
        ["page", "--chat", ""],
        ["token", "issue", "--role", "frontend", "--chat", CHAT, "--chat="],
        ["credentials", "issue", "--role", "frontend", "--chat", ""],
        ["credentials", "issue", "--role", "provisioner", "--pool", ""],
    ],
)
def test_a_flag_that_limits_what_a_command_deletes_or_grants_must_not_be_empty(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_parser().parse_args(words)

    assert ended.value.code == 2
    assert "its value is empty" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-5m", "-1", "5", "soon", "1h 30m", "1.5.2h", "٣h", "h"])
def test_the_error_for_a_duration_that_can_t_be_read_says_how_to_write_one(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["chat", "keep", CHAT, "--for"],
        ["workspace", "delete", "--all", "--older-than"],
    ):
        with pytest.raises(SystemExit) as ended:
            command_parser().parse_args([*words, text])

        assert ended.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.endswith(f"{text!r} is not a duration: write it like 45s, 2h, 1h30m or 30d")


@pytest.mark.parametrize("text", ["x", "[1]", "2", "null", '{"a": NaN}', '{"a": 1e999}', "["])
def test_args_that_is_not_a_json_object_is_wrong_usage(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_parser().parse_args(["tool", "t", "--chat", "new", "--args", text])

    assert ended.value.code == 2
    assert "--args" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["exec", CHAT, "ls", "-l"], "unrecognized arguments: -l; put -- before the command"),
        (["stop", "hello-2563"], "`workspaced chat list` prints the UUIDs of chats"),
    ],
)
def test_wrong_usage_says_what_is_right(
    words: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_parser().parse_args(words)

    assert advice in capsys.readouterr().err
