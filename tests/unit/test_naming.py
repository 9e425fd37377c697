"""The names of workspaces (contract §6)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine.naming import NameTakenError, generated, valid, workspace_name

SEED = b"seed"
RANDOM = re.compile(r"[a-z]+-[a-z]+-[0-9a-f]{4}")


@pytest.mark.parametrize("name", ["a", "A1", "a-b-c", "New", "CREATE", "x" * 32, "0"])
def test_a_valid_name_is_used_as_it_is(name: str) -> None:
    assert valid(name)
    assert workspace_name(f"  {name}\n", "python", set(), SEED) == name


@pytest.mark.parametrize(
    "name",
    ["", "new", "create", "-a", "a-", "a--b", "a_b", "a b", "x" * 33, "ä", "a\n", "a.b", "\uff21"],
)
def test_an_invalid_name_is_rejected(name: str) -> None:
    assert not valid(name)


@pytest.mark.parametrize("asked", [None, "", " \t "])
def test_a_blank_name_is_generated_from_the_template_name(asked: str | None) -> None:
    assert re.fullmatch("python-[0-9a-f]{4}", workspace_name(asked, "Python", set(), SEED))


@pytest.mark.parametrize(
    ("asked", "start"),
    [
        ("My Box", "mybox"),
        ("ann@example.com", "ann"),
        ("a@b@c", "ab"),
        ("Ünï-code", "n-code"),
        ("under_score", "underscore"),
        ("x" * 27 + "@host", "x" * 27),
        ("x" * 26 + "-yz!", "x" * 26),
        ("x" * 30 + "!", "x" * 27),
    ],
)
def test_an_invalid_name_is_cleaned(asked: str, start: str) -> None:
    assert re.fullmatch(f"{start}-[0-9a-f]{{4}}", workspace_name(asked, "python", set(), SEED))


@pytest.mark.parametrize("asked", ["new", "Create!", "@x", "!!!", "a--b", "-a", "x" * 33, "日本"])
def test_a_name_that_cannot_be_cleaned_becomes_random(asked: str) -> None:
    assert RANDOM.fullmatch(workspace_name(asked, "python", set(), SEED))


def test_a_template_name_of_32_is_cut_to_27() -> None:
    assert len(workspace_name(None, "y" * 32, set(), SEED)) == 32


def test_names_are_compared_without_case() -> None:
    name = workspace_name("Box", "python", {"box"}, SEED)

    assert re.fullmatch("Box-[0-9a-f]{4}", name)


def test_a_long_name_in_use_is_cut_to_fit() -> None:
    asked = "a" * 26 + "-" + "b" * 5

    name = workspace_name(asked, "python", {asked}, SEED)

    assert re.fullmatch("a{26}-[0-9a-f]{4}", name)
    assert valid(name)


def test_an_unavailable_name_is_tried_once_more() -> None:
    second = workspace_name("box", "python", {"box"}, SEED)

    with pytest.raises(NameTakenError):
        workspace_name("box", "python", {"box", second}, SEED)


def test_a_generated_name_in_use_is_tried_once_more_too() -> None:
    first = workspace_name(None, "python", set(), SEED)

    second = workspace_name(None, "python", {first}, SEED)

    assert re.fullmatch("python-[0-9a-f]{4}-[0-9a-f]{4}", second)


def test_different_seeds_give_different_names() -> None:
    assert len({workspace_name(None, "python", set(), bytes([n])) for n in range(50)}) > 45


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=60), st.binary(max_size=8))
def test_a_name_is_always_valid_and_fits(asked: str, seed: bytes) -> None:
    first = workspace_name(asked, "python", set(), seed)

    assert valid(first)
    assert valid(generated(asked, seed))
    assert valid(workspace_name(asked, "python", {first.lower()}, seed))
