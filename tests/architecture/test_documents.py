"""The documentation names files, symbols, sections, commands, flags and targets that exist."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from handlers.cli.command_table import command_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)
PATH = re.compile(r"`((?:statemachine|bus|handlers|tests|deploy|docs)/[\w./*-]*)`")
CODE = ("bus", "docs", "handlers", "statemachine", "client")
SYMBOL = re.compile(r"`([A-Za-z_][\w.]*)`\s\(`([\w/.]+\.(?:py|sql))`\)")
FENCE = re.compile(r"^```(.*)\n((?s:.*?))^```$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def symbols(source: str) -> set[str]:
    """Return what a module defines: top-level names, and methods as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name, body=body):
                found.add(name)
                found |= {
                    f"{name}.{part.name}"
                    for part in body
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
                }
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case _:
                pass
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    missing = [path for path in PATH.findall(prose(page)) if not list(ROOT.glob(path))]

    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_symbol_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for symbol, path in SYMBOL.findall(prose(page)):
        source = (ROOT / path).read_text()
        if path.endswith(".sql"):
            exists = re.search(rf"\b{symbol}\b", source) is not None
        else:
            exists = symbol in symbols(source)
        if not exists:
            missing.append(f"{path}: {symbol}")

    assert not missing


def test_every_class_and_constant_in_the_instructions_to_add_things_exists() -> None:
    """Section 6 of ARCHITECTURE.md names some classes and constants without their files."""
    text = prose(ROOT / "ARCHITECTURE.md")
    section = text[text.index("\n## 6. ") : text.index("\n## 7. ")]
    names = set(re.findall(r"`(_?[A-Z]\w*(?:\.\w+)?)`", section))
    sources = chain(*(ROOT.glob(f"{folder}/**/*.py") for folder in CODE))
    defined = set(chain.from_iterable(symbols(source.read_text()) for source in sources))

    assert len(names) > 15
    assert names <= defined


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for path, anchor in LINK.findall(prose(page)):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}")

    assert not broken


def commands(page: Path) -> Iterator[str]:
    """Yield each `workspaced …` line of a page's code blocks and inline code, without comments."""
    for language, fence in FENCE.findall(page.read_text()):
        if language:
            continue
        for line in fence.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|\$ |bin/|^ +)workspaced ([a-z].*?)(?:$|#| &)", line):
                yield found[1]
    yield from re.findall(r"`workspaced ([^`]*)`", prose(page))


def unknown_words(parser: argparse.ArgumentParser, line: str) -> list[str]:
    """Return the commands and flags of a line that the command line does not have."""
    words = re.findall(r"[\w-]+", line)
    while words:
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups or words[0] not in groups[0].choices:
            break
        parser = groups[0].choices[words.pop(0)]
    if groups and words and words[0].islower() and not words[0].startswith("-"):
        return [words[0]]
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line))
    return sorted(flags - set(parser._option_string_actions))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_flag_that_a_page_names_exists(page: Path) -> None:
    parser = command_parser()

    wrong = {line: found for line in commands(page) if (found := unknown_words(parser, line))}

    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()

    found = {
        *re.findall(r"`make ([a-z-]+)", text),
        *re.findall(r"^make ([a-z-]+)", text, re.MULTILINE),
    }

    assert found <= targets


def test_operators_names_commands_and_a_wrong_one_is_found() -> None:
    """So that the tests above can fail."""
    parser = command_parser()

    assert len(list(commands(ROOT / "docs/operators.md"))) > 20
    assert unknown_words(parser, "chat shows CHAT") == ["shows"]
    assert unknown_words(parser, "chat list --stat S") == ["--stat"]


def test_architecture_names_symbols() -> None:
    """So that the test above can fail."""
    assert len(SYMBOL.findall(prose(ROOT / "ARCHITECTURE.md"))) > 20
