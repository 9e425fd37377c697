"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    chain.from_iterable(
        (ROOT / name).rglob("*.py") for name in ("statemachine", "bus", "handlers", "client")
    )
)
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "misc"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_module_is_named_for_what_it_is(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_sleep_is_only_ever_a_back_off_after_an_error() -> None:
    """Nothing polls: who waits for a change is woken by it."""
    lines = [
        (named(path), line)
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(r"\bsleep\(|import.*\bsleep\b", line)
    ]

    unexplained = [found for found in lines if not re.search(r"#.*\bback-off\b", found[1])]
    assert not unexplained


SUBJECT = re.compile(
    r"workspaced\.(in|job|state|log|result|dead|timer|presence|resend|ui|rpc|worker|agent|exec)\.|\$(JS|SYS|SRV)\."
)
"""The beginning of a subject; `workspaced.<name>.v1`, the type of an event, does not match."""


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name != "subjects.py"], ids=named
)
def test_only_the_module_of_subjects_spells_a_subject(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    spelled = [
        f"line {node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and SUBJECT.match(node.value)
    ]

    assert not spelled, "use the constants and functions of bus/subjects.py"
