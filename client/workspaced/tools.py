"""The tools as a model's API wants them: names, descriptions and JSON Schemas of their arguments.

`make schemas` writes `tools.json` from the models of workspaced.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

Format = Literal["openai", "anthropic", "mcp"]


def tools(format: Format = "anthropic", *, execute: bool = True) -> list[dict[str, Any]]:  # noqa: A002  # of the API
    """Return the definitions of all tools.

    `openai`: for `tools` of chat completions; `anthropic`: for `tools` of messages; `mcp`: as in `tools/list`.
    Without `execute`, those that run in the workspace are left out.

    >>> [tool["name"] for tool in tools(execute=False)][:2]
    ['create_workspace', 'start_workspace']
    """
    stored = json.loads((files("workspaced") / "tools.json").read_text())
    known = [tool for tool in stored if execute or not tool["in_workspace"]]
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
                for tool in known
            ]
        case "anthropic" | "mcp":
            key = "input_schema" if format == "anthropic" else "inputSchema"
            return [
                {
                    "name": tool["name"],
                    "description": tool["description"],
                    key: tool["arguments"],
                }
                for tool in known
            ]
    raise ValueError(f"format {format!r} is none of openai, anthropic, mcp")
