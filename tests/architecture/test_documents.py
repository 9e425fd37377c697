"""The documentation names files, symbols and sections that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md") for path in ROOT.glob(pattern)
)
PATH = re.compile(r"`((?:statemachine|bus|handlers|tests|deploy|docs)/[\w./*-]*)`")
SYMBOL = re.compile(r"`([A-Za-z_][\w.]*)`\s\(`([\w/.]+\.(?:py|sql))`\)")
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


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for path, anchor in LINK.findall(prose(page)):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}")

    assert not broken


def test_architecture_names_symbols() -> None:
    """So that the test above can fail."""
    assert len(SYMBOL.findall(prose(ROOT / "ARCHITECTURE.md"))) > 20
