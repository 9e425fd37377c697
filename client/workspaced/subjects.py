"""The NATS subjects that the client uses. No other module of it spells a subject."""

from __future__ import annotations


def request(chat_id: str, service: str) -> str:
    """Return the subject of a chat service's events about a chat."""
    return f"workspaced.in.tool.{chat_id}.{service}"


def result(chat_id: str, call_id: str) -> str:
    """Return the subject of a call's answer."""
    return f"workspaced.result.{chat_id}.{call_id}"


def rpc(name: str) -> str:
    """Return the subject of an rpc."""
    return f"workspaced.rpc.{name}"


def ui_state(chat_id: str) -> str:
    """Return the subject of a chat's states as they are stored."""
    return f"workspaced.ui.{chat_id}.state"


def ui_logs(chat_id: str) -> str:
    """Return the subject of the log lines of all builds of a chat as they are stored."""
    return f"workspaced.ui.{chat_id}.log.*"


def last_state(chat_id: str) -> str:
    """Return where to ask for the present state of a chat."""
    return f"$JS.API.DIRECT.GET.WORKSPACED_STATE.workspaced.state.{chat_id}"


def last_result(chat_id: str, call_id: str) -> str:
    """Return where to ask for the stored answer of a call."""
    return f"$JS.API.DIRECT.GET.WORKSPACED_RESULT.{result(chat_id, call_id)}"
