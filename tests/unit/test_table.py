"""The diagrams in the documents are generated from the table of moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from statemachine.states import STATE_INFO, State
from statemachine.table import DRAWINGS, END, mermaid, redraw, wire_mermaid

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "README.md"])
def test_the_diagrams_in_the_documents_match_the_table(name: str) -> None:
    """`make diagram` updates them."""
    text = (ROOT / name).read_text()

    assert any(text.count(begin) == 1 for begin in DRAWINGS)
    assert redraw(text) == text


@pytest.mark.parametrize("begin", DRAWINGS)
def test_redrawing_is_idempotent(begin: str) -> None:
    blank = f"before\n{begin}\nold\n{END}\nafter"

    drawn = redraw(blank)

    assert DRAWINGS[begin]() in drawn
    assert drawn.startswith("before\n")
    assert drawn.endswith("\nafter")
    assert redraw(drawn) == drawn


def test_two_diagrams_in_one_document_keep_their_places() -> None:
    first, second = DRAWINGS
    drawn = redraw(f"{second}\n{END}\nbetween\n{first}\n{END}")

    assert drawn.index(wire_mermaid()) < drawn.index("between") < drawn.index(mermaid())


@pytest.mark.parametrize("text", ["", *DRAWINGS, END])
def test_a_document_without_both_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        redraw(text)


def test_the_diagrams_name_every_state() -> None:
    for state in State:
        assert f" {state}" in mermaid()
        assert f" {STATE_INFO[state].wire}" in wire_mermaid()
