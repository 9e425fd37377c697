"""The tools as a model's API wants them: names, descriptions and JSON Schemas of their arguments.

`make schemas` writes `tools.json` from the models of workspaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Format = Literal["openai", "anthropic", "mcp"]


def tools(format: Format = "anthropic", *, execute: bool = True) -> list[dict[str, Any]]:  # noqa: A002  # of the API
    """Return the definitions of all tools.

    `openai`: for `tools` of chat completions; `anthropic`: for `tools` of messages; `mcp`: as in `tools/list`.
    Without `execute`, those that run in the workspace are left out.

    >>> [tool["name"] for tool in tools(execute=False)][:2]
    ['create_workspace', 'start_workspace']
    """
    stored = json.loads(Path(__file__).with_name("tools.json").read_text())
    return in_format([tool for tool in stored if execute or not tool["in_workspace"]], format)


def in_format(stored: Sequence[Mapping[str, Any]], format: Format) -> list[dict[str, Any]]:  # noqa: A002
    """Return tools as a model's API wants them."""
    match format:
        case "openai":
            return [
                {
                    "type": "function",
                    "function": {
                        "name": tool["name"],
                        "description": tool["description"],
                        "parameters": tool["arguments"],
                    },
                }
                for tool in stored
            ]
        case "anthropic" | "mcp":
            key = "input_schema" if format == "anthropic" else "inputSchema"
            return [
                {
                    "name": tool["name"],
                    "description": tool["description"],
                    key: tool["arguments"],
                }
                for tool in stored
            ]
    raise ValueError(f"format {format!r} is none of openai, anthropic, mcp")
