"""Values of parameters, contract §5 and §8."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from statemachine.hiding import MASK
from statemachine.parameters import Misfits, Parameter, as_text, masked, misfit, resolve


def parameter(**keys: Any) -> Parameter:
    return Parameter.model_validate({"name": "p", **keys})


NUMBER = parameter(type="number", validation_min=-1, validation_max=2.5)
OPTIONS = [{"name": "A", "value": "a"}, {"name": "B", "value": "b"}]


@pytest.mark.parametrize(
    ("declared", "good", "bad"),
    [
        (parameter(), ["", "x", "a\nb"], []),
        (
            parameter(type="number"),
            ["0", "-1", "+2", "1.5", "1e3", ".5", "5."],
            ["", "x", "nan", "inf", "1e999", "1_000", " 1", "٣", "0x10", "1\n", "--1", "."],
        ),
        (NUMBER, ["-1", "2.5", "0"], ["-1.1", "2.6", "1e3"]),
        (parameter(type="bool"), ["true", "false"], ["True", "1", "yes", ""]),
        (
            parameter(type="list(string)"),
            ["[]", '["a"]', '["a", "b"]'],
            ["", "a", '"a"', "[1]", '{"a": 1}', '["\\ud800"]', "[" * 5000, "[NaN]"],
        ),
        (parameter(options=OPTIONS), ["a", "b"], ["", "A", "c", "ab"]),
        (
            parameter(type="list(string)", options=OPTIONS),
            ["[]", '["b", "a"]'],
            ['["c"]', '["a", "c"]'],
        ),
        (
            parameter(type="list(string)", options=[{"name": "AB", "value": ["a", "b"]}]),
            ['["a", "b"]'],
            ['["a", "c"]'],
        ),
        (parameter(validation_regex="b+"), ["abc", "b"], ["", "ac"]),
        (parameter(validation_regex="^b+$"), ["bb"], ["abc"]),
        (parameter(type="list(string)", validation_regex="^x"), ['["x", "xy"]'], ['["x", "y"]']),
    ],
)
def test_a_value_fits_its_declaration(declared: Parameter, good: list[str], bad: list[str]) -> None:
    assert {text: misfit(declared, text) for text in good} == dict.fromkeys(good)
    assert all(misfit(declared, text) for text in bad)


def test_a_regex_is_re2s_and_matches_in_linear_time() -> None:
    slow = parameter(validation_regex="^(a+)+$")

    assert misfit(slow, "a" * 50_000 + "!") is not None
    with pytest.raises(ValidationError, match="RE2"):
        parameter(validation_regex=r"(?=look)")


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "1x"},
        {"name": ""},
        {"type": "int"},
        {"default": "x", "type": "number"},
        {"default": "c", "options": OPTIONS},
        {"default": "x", "validation_regex": "^y"},
        {"validation_min": 1},
        {"type": "number", "validation_max": float("inf")},
        {"type": "number", "validation_min": float("nan")},
        {"type": "number", "default": float("inf")},
        {"type": "bool", "options": OPTIONS},
        {"mutabel": True},
        {"required": "yes"},
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parameter(**keys)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (True, "true"),
        (False, "false"),
        (5, "5"),
        (1.5, "1.5"),
        (["a", "ä"], '["a", "ä"]'),
        ([], "[]"),
    ],
)
def test_values_travel_as_text(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("value", [None, {}, [1], float("nan"), float("inf")])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        as_text(value)


SEVERAL = (
    parameter(name="branch", default="main"),
    parameter(name="cpus", type="number", required=True),
    parameter(name="note"),
)


def test_every_parameter_gets_a_value() -> None:
    assert resolve(SEVERAL, {"cpus": "2"}) == {"branch": "main", "cpus": "2", "note": ""}


def test_every_wrong_field_is_named_at_once() -> None:
    found = resolve(SEVERAL, {"colour": "red", "shape": "round"})

    assert isinstance(found, Misfits)
    assert [field for field, _ in found.fields] == ["colour", "shape", "cpus"]


def test_fallbacks_are_asked_in_their_order() -> None:
    first, second = {"branch": "one"}, {"branch": "two", "cpus": "3"}

    values = resolve(SEVERAL, {"note": "n"}, (first, second))

    assert values == {"branch": "one", "cpus": "3", "note": "n"}


FIXED = (parameter(name="size", mutable=False, default="s"), parameter(name="b", default="d"))


@pytest.mark.parametrize(
    ("last", "asked", "expected"),
    [
        ({"size": "xl", "b": "x"}, {}, {"size": "xl", "b": "x"}),
        ({"size": "xl", "b": "x"}, {"b": "y"}, {"size": "xl", "b": "y"}),
        ({"size": "xl", "b": "x"}, {"size": "xl"}, {"size": "xl", "b": "x"}),
        ({"size": "xl", "b": ""}, {}, {"size": "xl", "b": ""}),
        ({}, {}, {"size": "s", "b": "d"}),
        ({"size": "xl"}, {"size": "s"}, None),
        ({}, {"size": "xl"}, None),
        ({"size": "xl", "gone": "1"}, {"gone": "1"}, None),
    ],
)
def test_what_is_not_mutable_stays_as_the_last_build_had_it(
    last: dict[str, str], asked: dict[str, str], expected: dict[str, str] | None
) -> None:
    found = resolve(FIXED, asked, fixed=last)

    assert found == expected if expected is not None else isinstance(found, Misfits)


def test_a_fixed_parameter_that_is_new_may_be_given_once() -> None:
    new = (parameter(name="zone", mutable=False, required=True),)

    assert resolve(new, {"zone": "eu"}, fixed={"other": "1"}) == {"zone": "eu"}
    assert isinstance(resolve(new, {"zone": "us"}, fixed={"zone": "eu"}), Misfits)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (parameter(sensitive=True, options=OPTIONS), "secret"),
        (parameter(sensitive=True, validation_regex="^t"), "o'\"\n secret"),
        (parameter(sensitive=True, type="number"), "secret"),
        (parameter(sensitive=True, type="number", validation_max=1), "4711"),
        (parameter(sensitive=True, type="number", validation_min=1), "-4711"),
        (parameter(sensitive=True, type="bool"), "secret"),
        (parameter(sensitive=True, type="list(string)"), "secret"),
        (parameter(sensitive=True, type="list(string)", options=OPTIONS), '["a", "secret"]'),
        (parameter(sensitive=True, type="list(string)", validation_regex="^t"), '["secret"]'),
    ],
)
def test_no_words_hold_a_sensitive_value(declared: Parameter, value: str) -> None:
    found = resolve((declared,), {"p": value})

    assert isinstance(found, Misfits)
    words = json.dumps(found.validations)
    assert "secret" not in words
    assert "4711" not in words
    assert MASK in words


def test_sensitive_values_are_masked() -> None:
    declared = (parameter(name="a", sensitive=True), parameter(name="b"))

    assert masked(declared, {"a": "x", "b": "y", "c": "z"}) == {"a": MASK, "b": "y", "c": "z"}
