"""Outcomes of tool calls as results of the protocol."""

from __future__ import annotations

import json

from mcp_types import CallToolResult, TextContent

from handlers.mcp.calls import Outcome


def call_result(outcome: Outcome) -> CallToolResult:
    """Return an outcome as text for models, and as an object for programs."""
    text = json.dumps(outcome, ensure_ascii=False)
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=dict(outcome),
        is_error=outcome.failed,
    )
