"""The statements of queries.sql and the parts of roles.sql by name, and the migrations in order."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

_HERE: Final = files(__package__)


@cache
def queries() -> dict[str, str]:
    """Return name -> statement."""
    return _named("queries.sql")


@cache
def roles() -> dict[str, str]:
    """Return name -> part of what makes the roles, prepares a database for them, and grants."""
    return _named("roles.sql")


def _named(file: str) -> dict[str, str]:
    parts = re.split(r"^-- name: (\w+)\n", _HERE.joinpath(file).read_text(), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


class Migration(NamedTuple):
    """One forward step of the schema."""

    number: int
    name: str
    text: str


def migrations() -> list[Migration]:
    """Return all migrations by number."""
    return sorted(
        Migration(int(match[1]), match[2], file.read_text())
        for file in _HERE.joinpath("migrations").iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name))
    )
