"""Every threat of SECURITY.md has a defence, and a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Threat(NamedTuple):
    threat: str
    defence: str
    tests: list[str]


def threats() -> list[Threat]:
    """The rows of the table of threats."""
    _, table = (ROOT / "SECURITY.md").read_text().split("| --- | --- | --- |\n")[-2:]
    rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()]
    return [Threat(row[0], row[1], re.findall(r"`([^`]*)`", row[2])) for row in rows]


def is_there(test: str) -> bool:
    path, _, name = test.partition("::")
    if not (path.startswith("tests/") and (ROOT / path).is_file()):
        return False
    functions = {
        node.name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return name in functions if name else any(one.startswith("test_") for one in functions)


def test_every_threat_has_a_defence_and_a_test() -> None:
    found = threats()

    assert len(found) > 20
    assert [one.threat for one in found if not (one.defence and one.tests)] == []


def test_the_tests_that_are_named_are_there() -> None:
    missing = [test for one in threats() for test in one.tests if not is_there(test)]

    assert missing == []


RUNS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "prepare", "cursor"}
"""Methods of asyncpg that run statements."""


def is_fixed(statement: ast.expr) -> bool:
    """Say whether a statement is text of ours: a literal, a constant, one of the .sql files."""
    match statement:
        case ast.Constant(value=str()) | ast.Attribute(value=ast.Name(id="step"), attr="text"):
            return True
        case ast.Name(id=name):
            return name.isupper()
        case ast.Subscript(value=ast.Name(id="QUERIES") | ast.Call(func=ast.Name(id="roles"))):
            return True
        case ast.JoinedStr(values=parts):
            return all(map(is_fixed, parts))
        case ast.FormattedValue(value=part):
            return isinstance(part, ast.Name) and is_fixed(part)
        case _:
            return False


def test_no_statement_is_made_of_what_somebody_wrote() -> None:
    sources = [*(ROOT / "statemachine/store").glob("*.py"), *(ROOT / "handlers").rglob("*.py")]
    calls = [
        (source, node)
        for source in sources
        if "asyncpg" in source.read_text()
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in RUNS
    ]

    assert len(calls) >= 20
    made = [f"{s.name}:{node.lineno}" for s, node in calls if not is_fixed(node.args[0])]
    assert made == []
