"""Events that would be too large as JSON are shortened, but only in texts for people."""

from __future__ import annotations

import json

import pytest
from pydantic_core import to_json

from handlers.worker import publications
from statemachine.calls import Answered
from statemachine.sizes import LONGEST_DATA, cut, fit
from tests.unit.facts import NOW

TEXTS = [
    "plain " * 50,
    "\x01" * 300,
    '"\\' * 150,
    "ä" * 300,
    "\N{PILE OF POO}" * 80,
    "\n\t" * 150,
    "\x7f" * 300,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("most", [0, 1, 5, 6, 7, 100, 299, 300, 5000])
@pytest.mark.parametrize("keep_end", [True, False])
def test_a_text_is_cut_to_its_size_as_json(text: str, most: int, *, keep_end: bool) -> None:
    found = cut(text, most, keep_end=keep_end)

    assert len(to_json(found)) - 2 <= most
    assert text.endswith(found) if keep_end else text.startswith(found)
    if found != text:
        longer = text[-len(found) - 1 :] if keep_end else text[: len(found) + 1]
        assert len(to_json(longer)) - 2 > most


def test_texts_that_fit_stay_unchanged() -> None:
    data = {"error": "x" * 1000, "build_id": "b"}

    assert fit(data) is data


@pytest.mark.parametrize("text", TEXTS)
def test_only_texts_for_people_are_cut(text: str) -> None:
    long = text * 20_000
    data = {
        "build_id": "b",
        "failure": {"reason": "build_failed", "message": long},
        "parameters": [{"name": "n", "description": long, "default": "kept" * 100}],
        "error": "short",
    }

    found = fit(data)

    assert len(to_json(found)) <= LONGEST_DATA
    assert len(to_json(found)) > LONGEST_DATA * 0.9
    assert found["failure"]["reason"] == "build_failed"
    assert long.endswith(found["failure"]["message"])
    assert long.startswith(found["parameters"][0]["description"])
    assert found["parameters"][0]["default"] == "kept" * 100
    assert found["error"] == "short"


def test_values_that_cannot_be_cut_are_kept() -> None:
    found = fit({"values": ["x" * LONGEST_DATA], "error": "y" * 10})

    assert found == {"values": ["x" * LONGEST_DATA], "error": ""}


@pytest.mark.parametrize("character", ["x", "\x01", "\N{SNOWMAN}"])
def test_an_answer_of_any_length_is_published(character: str) -> None:
    answer = Answered({"error": character * 1_000_000, "build_id": "b"})

    row = publications.result("chat", "call", "create_workspace", answer, None, NOW, "name")

    assert len(row.payload) < 1_000_000
    assert json.loads(row.payload)["data"]["result"]["build_id"] == "b"
