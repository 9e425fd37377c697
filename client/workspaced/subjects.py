"""The NATS subjects that the client uses, and the ids in them. No other module of it spells a subject."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from workspaced.errors import Invalid

RESEND: Final = "workspaced.resend.provisioner"
"""On which workers ask all provisioners for their facts again."""
ALL_FACTS: Final = "workspaced.in.provisioner.*.*"
ALL_AGENT_FACTS: Final = "workspaced.in.agent.*.*"
ALL_LOGS: Final = "workspaced.log.*.*"
ALL_RESULTS: Final = "workspaced.result.*.*"
ALL_DEAD: Final = "workspaced.dead.*"
REVOCATIONS: Final = "workspaced.token.revoked"
"""On which gateways say which bearer token was revoked."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


def check_uuid(field: str, value: str) -> None:
    """Raise Invalid if a value is no UUID in the form that ids have."""
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise Invalid(f"{field} must be a lower-case UUID, and is {value!r}")


def uuid_text(field: str, value: str | UUID) -> str:
    """Return an id as text. Raises Invalid if it is no UUID in the form that ids have."""
    text = str(value) if isinstance(value, UUID) else value
    check_uuid(field, text)
    return text


def check_token(field: str, value: str) -> None:
    """Raise Invalid if a value cannot be a part of a subject."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise Invalid(f"{field} must be 1 to 128 of A-Z, a-z, 0-9, _ and -, and is {value!r}")


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


def ui_exec(chat_id: str, exec_id: str) -> str:
    """Return the subject of what a command does, as it is stored."""
    return f"workspaced.ui.{chat_id}.exec.*.{exec_id}"


def last_state(chat_id: str) -> str:
    """Return where to ask for the present state of a chat."""
    return f"$JS.API.DIRECT.GET.WORKSPACED_STATE.workspaced.state.{chat_id}"


def last_result(chat_id: str, call_id: str) -> str:
    """Return where to ask for the stored answer of a call."""
    return f"$JS.API.DIRECT.GET.WORKSPACED_RESULT.{result(chat_id, call_id)}"


LAST_RESULTS: Final = "$JS.API.DIRECT.GET.WORKSPACED_RESULT"
"""Where to ask for the newest of several stored answers."""


def results_of(chat_id: str) -> str:
    """Return the subjects of all answers of a chat."""
    return f"workspaced.result.{chat_id}.*"


def fact(chat_id: str, name: str) -> str:
    """Return the subject of a provisioner's facts about a chat."""
    return f"workspaced.in.provisioner.{chat_id}.{name}"


def log(chat_id: str, build_id: str) -> str:
    """Return the subject of the log of a build."""
    return f"workspaced.log.{chat_id}.{build_id}"


def job(pool: str) -> str:
    """Return the subject of a pool's jobs."""
    return f"workspaced.job.{pool}"


def cancel(pool: str) -> str:
    """Return the subject on which workers ask a pool's provisioners to cancel builds."""
    return f"workspaced.cancel.{pool}"


def next_jobs(pool: str) -> str:
    """Return where to ask for the next jobs of a pool."""
    return f"$JS.API.CONSUMER.MSG.NEXT.WORKSPACED_JOB.pool-{pool}"


def acks(pool: str) -> str:
    """Return the subjects of the words with which a pool's jobs are acknowledged."""
    return f"$JS.ACK.WORKSPACED_JOB.pool-{pool}.>"
