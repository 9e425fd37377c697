"""Every subject of the wire, by name: nobody else glues one together or takes one apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bus.errors import Refused

IN_TOOL: Final = "workspaced.in.tool.*.*"
"""Requests of chat services."""
IN_PROVISIONER: Final = "workspaced.in.provisioner.*.*"
"""Facts of provisioners."""
IN_AGENT: Final = "workspaced.in.agent.*.*"
"""Facts of agents."""
JOBS: Final = "workspaced.job.*"
"""Builds, by pool."""
STATES: Final = "workspaced.state.*"
"""Last states, by chat."""
LOGS: Final = "workspaced.log.*.*"
"""Log lines, by chat and build."""
RESULTS: Final = "workspaced.result.*.*"
"""Answers, by chat and call."""
DEADS: Final = "workspaced.dead.*"
"""Dead letters, by kind."""
TIMERS_ARMED: Final = "workspaced.timer.arm.>"
"""Timers that wait."""
TIMERS_FIRED: Final = "workspaced.timer.fired.>"
"""Timers whose time has come."""
PRESENCES: Final = "workspaced.presence.*.*"
"""Signs of life, by chat and agent."""
RESEND_PROVISIONER: Final = "workspaced.resend.provisioner"
"""Asks every provisioner to publish its newest facts again."""
RESEND_AGENT: Final = "workspaced.resend.agent"
"""Asks the same of every agent."""

UI_STATE_COPY: Final = "workspaced.ui.{{wildcard(1)}}.state"
"""Where the server republishes a stored state; the wildcard is that of `STATES`."""
UI_LOG_COPY: Final = "workspaced.ui.{{wildcard(1)}}.log.{{wildcard(2)}}"
"""Where the server republishes a stored log line; the wildcards are those of `LOGS`."""

_IN: Final = re.compile(
    r"workspaced\.in\.(?P<kind>tool|provisioner|agent)\.(?P<chat>[^.]+)\.(?P<sender>[^.]+)"
)

_SUBJECT: Final = re.compile(r"[^\s]+")


@dataclass(frozen=True, slots=True)
class Inbound:
    """What the subject of an inbound message says of it."""

    kind: str
    chat: str
    sender: str


def parse_inbound(subject: str) -> Inbound | None:
    """Read `workspaced.in.<kind>.<chat>.<sender>`, or None when it is none."""
    found = _IN.fullmatch(subject)
    return Inbound(*found.groups()) if found else None


def inbound(kind: str, chat: str, sender: str) -> str:
    """Return where `sender` publishes an event about `chat`."""
    return f"workspaced.in.{kind}.{chat}.{sender}"


def job(pool: str) -> str:
    """Return where builds for `pool` are published."""
    return f"workspaced.job.{pool}"


def state(chat: str) -> str:
    """Return where the chat's state is published and kept."""
    return f"workspaced.state.{chat}"


def log(chat: str, build: str) -> str:
    """Return where the build's log lines are published."""
    return f"workspaced.log.{chat}.{build}"


def result(chat: str, call: str) -> str:
    """Return where the call is answered."""
    return f"workspaced.result.{chat}.{call}"


def dead(kind: str) -> str:
    """Return where dead letters of that kind go."""
    return f"workspaced.dead.{kind}"


def timer_arm(chat: str, purpose: str, generation: int) -> str:
    """Return where a timer is armed; each generation has its own, so none replaces another."""
    return f"workspaced.timer.arm.{chat}.{purpose}.{generation}"


def timer_fired(chat: str, purpose: str) -> str:
    """Return where that timer fires, whatever its generation."""
    return f"workspaced.timer.fired.{chat}.{purpose}"


def fires_on(armed: str) -> str:
    """Return where a timer fires that is armed on that subject."""
    _, _, _, chat, purpose, _ = armed.split(".")
    return timer_fired(chat, purpose)


def parse_timer_fired(subject: str) -> tuple[str, str]:
    """Return chat and purpose of a fired timer."""
    _, _, _, chat, purpose = subject.split(".", 4)
    return chat, purpose


def presence(chat: str, agent: str) -> str:
    """Return where the agent shows that it lives."""
    return f"workspaced.presence.{chat}.{agent}"


def parse_presence(subject: str) -> tuple[str, str]:
    """Return chat and agent of a sign of life."""
    _, _, chat, agent = subject.split(".", 3)
    return chat, agent


def rpc(name: str) -> str:
    """Return where the gateway answers requests of that name."""
    return f"workspaced.rpc.{name}"


def ui(chat: str) -> str:
    """Return what a frontend of the chat subscribes to: its states and logs."""
    return f"workspaced.ui.{chat}.>"


def ui_state(chat: str) -> str:
    """Return where the copy of the chat's stored state appears."""
    return f"workspaced.ui.{chat}.state"


def kick(server: str) -> str:
    """Return where that server process is asked to close a client's connection."""
    return f"$SYS.REQ.SERVER.{server}.KICK"


def check(subject: str) -> None:
    """Raise Refused for what is no subject: a blank in it would be a command to the server."""
    if not _SUBJECT.fullmatch(subject):
        raise Refused(f"not a subject: {subject!r}")


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subscription to `pattern` gets messages of `subject`."""
    if pattern == subject:
        return True
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(w in ("*", t) for w, t in zip(wanted, tokens, strict=False))
