"""Checks messages against docs/schemas. Nothing is imported from the product.

The schemas let readers ignore unknown keys. The check of workspaced's own messages is stricter: a
key that no schema describes is an error here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema_rs import Draft202012Validator, ValidationError

SCHEMAS = Path(__file__).parents[1] / "docs/schemas"


def check(path: str, value: Any) -> None:
    """Raise AssertionError unless `value` matches the schema in that file of docs/schemas."""
    if path == "bot.json":  # a tool call of a model, in the guide for chat services
        path, value = f"tools/{value['name']}.args.json", {"template_id": "", **value["input"]}
    try:
        _validator(path).validate(value)
    except ValidationError as wrong:
        raise AssertionError(f"{path}: {wrong}") from None


def check_event(event: dict[str, Any]) -> None:
    """Check a whole event against the schema of its type."""
    check(path_of(event), event)


def path_of(event: dict[str, Any]) -> str:
    """Return the file in docs/schemas that describes events of this type."""
    return f"messages/{str(event['type']).removeprefix('workspaced.')}.json"


def exists(path: str) -> bool:
    return (SCHEMAS / path).is_file()


@cache
def _validator(path: str) -> Draft202012Validator:
    return Draft202012Validator(_closed(json.loads((SCHEMAS / path).read_text())))


def _closed(schema: Any) -> Any:
    """Return the schema with unknown keys forbidden in every object."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
