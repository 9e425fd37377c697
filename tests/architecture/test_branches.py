"""Every branch in docs/internals/tool-rules.md has tests that carry its number, and many have recorded logs."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {
    "the pure function": (
        "tests/unit/test_tool_rules*.py",
        "tests/unit/test_cancels.py",
        "tests/unit/test_lifetimes.py",
    ),
    "the wire": (
        "tests/wire/test_branches_*.py",
        "tests/wire/test_cancel_build.py",
        "tests/wire/test_limits.py",
    ),
}
LOGGED = {
    *("G4", "G5", "G6", "C4f", "C4g", "C4l", "C4m", "C4n", "C5i", "C5j", "C5k", "C7b", "C9"),
    *("S5d", "S5e", "S7e", "S7f", "S7g", "S9", "P4c", "P4d", "R4"),
}
"""Branches of calls that need a recorded log. Those of the second table need one, too."""
ROW = re.compile(r"^\| ([A-Z]\d[a-z]?) \|", re.MULTILINE)
IN_A_NAME = re.compile(r"(?<=_)[a-z]\d[a-z]?(?=_|$)")
IN_AN_ID = re.compile(r"\A[A-Z]\d[a-z]?\b")


def branches() -> list[str]:
    return ROW.findall((ROOT / "docs/internals/tool-rules.md").read_text())


def numbers(source: str) -> Iterator[str]:
    """Numbers in the names of a module's tests, and at the beginning of its parametrize ids."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test_"):
                yield from (number.capitalize() for number in IN_A_NAME.findall(node.name))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from IN_AN_ID.findall(node.value)


def covered(where: str) -> set[str]:
    paths = [path for pattern in TESTS[where] for path in ROOT.glob(pattern)]
    return {number for path in paths for number in numbers(path.read_text())}


def logged() -> set[str]:
    logs = tomllib.loads((ROOT / "tests/replay/logs/endings.toml").read_text())
    return {number for log in logs.values() for number in log.get("branches", "").split()}


def in_the_second_table() -> set[str]:
    _, second = (ROOT / "docs/internals/tool-rules.md").read_text().split("\n## ")
    return set(ROW.findall(second))


def test_the_table_is_found_and_names_each_branch_once() -> None:
    found = branches()

    assert len(found) > 80
    assert len(found) == len(set(found))


@pytest.mark.parametrize("where", TESTS)
def test_every_branch_is_tested(where: str) -> None:
    tested = covered(where)
    missing = [number for number in branches() if number not in tested]

    assert not missing


def test_what_is_tested_at_the_wire_stands_in_the_table() -> None:
    assert covered("the wire") <= set(branches())


def test_branches_that_need_a_recorded_log_have_one() -> None:
    assert LOGGED | in_the_second_table() <= logged() <= set(branches())


def test_a_mention_is_no_test() -> None:
    source = '''
"""A module about R6."""
NAMES = ["R1 ready", "of R2", "R3"]
# C1a
def helper_c2a(): "C2b"
async def test_c3a_s5_it_waits(): """As C4."""
'''

    assert sorted(numbers(source)) == ["C2b", "C3a", "R1", "R3", "S5"]
