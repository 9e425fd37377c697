"""Values of parameters (contract §5 and §8)."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest
from pydantic import ValidationError

from statemachine.mask import MASK
from statemachine.parameters import (
    Kind,
    LastBuild,
    Misfits,
    Parameter,
    as_text,
    masked,
    misfit,
    reset,
    resolve,
    same,
)


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
def test_valid_values_are_accepted(declared: Parameter, good: list[str], bad: list[str]) -> None:
    assert {text: misfit(declared, text) for text in good} == dict.fromkeys(good)
    assert all(misfit(declared, text) for text in bad)


def test_a_regex_is_re2s_and_matches_in_linear_time() -> None:
    slow = parameter(validation_regex="^(a+)+$")

    assert misfit(slow, "a" * 50_000 + "!") is not None
    with pytest.raises(ValidationError, match=r"not a valid RE2 expression: [a-z]"):
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
def test_inconsistent_declarations_are_rejected(keys: dict[str, Any]) -> None:
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
        (4.0, "4"),
        (-0.0, "0"),
        (1e3, "1000"),
        (1e21, "1000000000000000000000"),
        (1e-7, "1e-07"),
        ("4.0", "4.0"),
        (["a", "ä"], '["a", "ä"]'),
        ([], "[]"),
    ],
)
def test_values_are_converted_to_text(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("value", [None, {}, [1], float("nan"), float("inf")])
def test_invalid_values_are_rejected(value: object) -> None:
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


def test_fallbacks_are_used_in_their_order() -> None:
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
        ({}, {"size": "xl"}, {"size": "xl", "b": "d"}),
        ({"size": "xl", "gone": "1"}, {"gone": "1"}, None),
    ],
)
def test_an_immutable_parameter_keeps_the_value_of_the_last_build(
    last: dict[str, str], asked: dict[str, str], expected: dict[str, str] | None
) -> None:
    found = resolve(FIXED, asked, last=LastBuild(last))

    assert found == expected if expected is not None else isinstance(found, Misfits)


def test_a_new_immutable_parameter_may_be_set_once() -> None:
    new = (parameter(name="zone", mutable=False, required=True),)

    assert resolve(new, {"zone": "eu"}, last=LastBuild({"other": "1"})) == {"zone": "eu"}
    assert isinstance(resolve(new, {"zone": "us"}, last=LastBuild({"zone": "eu"})), Misfits)


SAME = [
    (Kind.NUMBER, ["4", "4.0", "+4", "4.", "04", "4e0", "40e-1", ".4e1"]),
    (Kind.NUMBER, ["0.5", ".5", "+.50", "5e-1"]),
    (Kind.NUMBER, ["0", "-0", "0.0", "0e9"]),
    (Kind.NUMBER, ["12345678901234567890", "12345678901234567890.0"]),
    (Kind.STRINGS, ['["a","b"]', '["a", "b"]', ' [ "a" , "\\u0062" ] ']),
    (Kind.STRINGS, ["[]", "[ ]"]),
]


@pytest.mark.parametrize(("kind", "spellings"), SAME)
def test_different_spellings_are_the_same_value(kind: Kind, spellings: list[str]) -> None:
    for one, other in permutations(spellings, 2):
        assert same(kind, one, other), (one, other)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (Kind.NUMBER, "4", "5"),
        (Kind.NUMBER, "12345678901234567890", "12345678901234567891"),
        (Kind.NUMBER, "4", "four"),
        (Kind.NUMBER, "4", ""),
        (Kind.NUMBER, "1e999", "1e998"),
        (Kind.NUMBER, "1e-99999999999999999999", "1"),
        (Kind.STRINGS, '["a","b"]', '["b","a"]'),
        (Kind.STRINGS, '["a"]', "a"),
        (Kind.STRING, "4", "4.0"),
        (Kind.STRING, "a", "a "),
        (Kind.BOOL, "true", "false"),
    ],
)
def test_different_values_are_not_the_same(kind: Kind, one: str, other: str) -> None:
    assert not same(kind, one, other)
    assert not same(kind, other, one)


def test_an_option_may_be_spelled_differently_and_is_passed_as_given() -> None:
    sizes = [{"name": "small", "value": "4"}, {"name": "large", "value": "8.0"}]
    number = parameter(type="number", options=sizes)
    texts = parameter(type="list(string)", options=[{"name": "both", "value": '["a", "b"]'}])

    for value in ("4.0", "8", "+8"):
        assert resolve((number,), {"p": value}) == {"p": value}
    assert isinstance(resolve((number,), {"p": "5"}), Misfits)
    assert resolve((texts,), {"p": '["a","b"]'}) == {"p": '["a","b"]'}
    assert isinstance(resolve((texts,), {"p": '["b","a"]'}), Misfits)


STALE: dict[str, tuple[str, dict[str, Any]]] = {
    "an option is gone": ("a", {"options": OPTIONS[1:], "default": "b"}),
    "the maximum is lower": ("9", {"type": "number", "validation_max": 5, "default": "1"}),
    "the minimum is higher": ("1", {"type": "number", "validation_min": 5, "default": "6"}),
    "the expression is tighter": ("A", {"validation_regex": "^[a-z]$", "default": "b"}),
    "a text became a number": ("big", {"type": "number", "default": "1"}),
    "a text became a list": ("a", {"type": "list(string)", "default": "[]"}),
    "a number became a bool": ("1", {"type": "bool", "default": "false"}),
}
"""Values of the last build that no longer fit the template, by reason."""


@pytest.mark.parametrize("why", STALE)
def test_a_value_that_became_invalid_is_replaced_by_the_default_or_kept_if_immutable(
    why: str,
) -> None:
    value, keys = STALE[why]
    last = LastBuild({"p": value})
    for mutable in (True, False):
        declared = (parameter(mutable=mutable, **keys),)
        expected = keys["default"] if mutable else value

        assert resolve(declared, {}, last=last) == {"p": expected}
        assert reset(declared, {}, last) == (("p",) if mutable else ())
        given = resolve(declared, {"p": value}, last=last)
        assert isinstance(given, Misfits) if mutable else given == {"p": value}


@pytest.mark.parametrize("why", STALE)
def test_without_a_default_a_value_that_became_invalid_is_dropped_or_required_again(
    why: str,
) -> None:
    value, keys = STALE[why]
    last, plain = LastBuild({"p": value}), {k: v for k, v in keys.items() if k != "default"}

    assert resolve((parameter(**plain),), {}, last=last) == {"p": ""}
    assert reset((parameter(**plain),), {}, last) == ("p",)
    found = resolve((parameter(required=True, **plain),), {}, last=last)
    assert isinstance(found, Misfits)
    ((field, detail),) = found.fields
    assert field == "p"
    assert "no longer fits" in detail
    required = (parameter(required=True, **plain),)
    assert resolve(required, {"p": keys["default"]}, last=last) == {"p": keys["default"]}
    assert reset(required, {"p": keys["default"]}, last) == ()


def test_a_kept_invalid_value_may_be_spelled_differently_but_not_changed() -> None:
    declared = (parameter(type="number", mutable=False, validation_max=5),)
    last = LastBuild({"p": "9"})

    assert resolve(declared, {"p": "9.0"}, last=last) == {"p": "9"}
    assert isinstance(resolve(declared, {"p": "4"}, last=last), Misfits)


def test_a_removed_parameter_is_omitted() -> None:
    last = LastBuild({"p": "1", "gone": "2"})

    assert resolve((parameter(),), {}, last=last) == {"p": "1"}
    assert reset((parameter(),), {}, last) == ()


def test_an_immutable_parameter_without_a_value_may_be_set_once() -> None:
    """The job carries an empty text for it; the build's version says whether that was a value."""
    without = (parameter(mutable=False),)
    unset = LastBuild({"p": ""}, without)

    assert resolve(without, {"p": "x"}, last=unset) == {"p": "x"}
    with_default = (parameter(mutable=False, default="d"),)
    assert resolve(with_default, {"p": "x"}, last=unset) == {"p": "x"}
    assert resolve(with_default, {}, last=unset) == {"p": "d"}
    given = LastBuild({"p": ""}, with_default)
    assert isinstance(resolve(with_default, {"p": "x"}, last=given), Misfits)
    assert resolve(with_default, {}, last=given) == {"p": ""}


def test_a_sensitive_value_that_became_invalid_is_not_shown() -> None:
    declared = (parameter(type="number", sensitive=True, required=True),)

    found = resolve(declared, {}, last=LastBuild({"p": "s3cret"}))

    assert isinstance(found, Misfits)
    assert "s3cret" not in str(found)


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
def test_no_error_message_contains_a_sensitive_value(declared: Parameter, value: str) -> None:
    found = resolve((declared,), {"p": value})

    assert isinstance(found, Misfits)
    words = json.dumps(found.validations)
    assert "secret" not in words
    assert "4711" not in words
    assert MASK in words


def test_sensitive_values_are_masked() -> None:
    declared = (parameter(name="a", sensitive=True), parameter(name="b"))

    assert masked(declared, {"a": "x", "b": "y", "c": "z"}) == {"a": MASK, "b": "y", "c": "z"}


def test_a_sensitive_value_in_another_parameters_value_is_not_repeated() -> None:
    token = parameter(name="token", sensitive=True)
    size = parameter(name="size", type="number")

    found = resolve((token, size), {"token": "s3cret-value", "size": "s3cret-value!"})

    assert isinstance(found, Misfits)
    assert found.fields == (("size", "'***!' is not a number"),)
