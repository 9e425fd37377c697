"""Every NATS subject that workspaced uses, defined once; those that the client uses too are defined there.

No other module builds a subject from parts or splits one; an architecture test enforces that.
A `*` matches one token of a subject, `>` all remaining tokens.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct
from workspaced.subjects import cancel as cancel
from workspaced.subjects import job as job
from workspaced.subjects import log as log
from workspaced.subjects import result as result
from workspaced.subjects import rpc as rpc
from workspaced.subjects import ui_state as ui_state

from bus.errors import Refused

IN_TOOL: Final = "workspaced.in.tool.*.*"
"""Tool calls of chat services, by chat and service."""
IN_PROVISIONER: Final = "workspaced.in.provisioner.*.*"
"""Facts from provisioners, by chat and provisioner."""
IN_AGENT: Final = "workspaced.in.agent.*.*"
"""Facts from agents, by chat and agent."""
JOBS: Final = "workspaced.job.*"
"""Jobs for provisioners, by pool."""
STATES: Final = "workspaced.state.*"
"""The latest state of each chat."""
LOGS: Final = "workspaced.log.*.*"
"""Log lines, by chat and build."""
RESULTS: Final = "workspaced.result.*.*"
"""Results of tool calls, by chat and call."""
DEADS: Final = "workspaced.dead.*"
"""Dead letters, by the kind of sender."""
ALARM_RANG: Final = "workspaced.timer.fired"
"""The latest alarm that rang."""
EARLIER_TIMERS: Final = "workspaced.timer.fired.>"
"""Timers that an earlier version armed, when they fire."""
EXECS: Final = "workspaced.exec.*.*.*"
"""Start, output and end of the processes of `execute`, by chat, agent and process."""
AGENT_REQUESTS: Final = "workspaced.agent.*.*.*"
"""The gateway's requests to agents, by chat, agent and tool."""
PRESENCES: Final = "workspaced.presence.*.*"
"""Heartbeats of agents, by chat and agent."""
CANCELS: Final = "workspaced.cancel.*"
"""Canceled builds, for the provisioners of a pool."""
RESEND_PROVISIONER: Final = "workspaced.resend.provisioner"
"""Asks every provisioner to publish its latest facts again."""
RESEND_AGENT: Final = "workspaced.resend.agent"
"""Asks every agent to publish its latest facts again."""
WORKER_POOLS: Final = "workspaced.worker.pools"
"""Asks a worker to create the durable consumers of all pools that templates name."""
WORKER_SETTINGS: Final = "workspaced.worker.settings"
"""Asks a worker to look at what follows at once from settings that have changed."""
WORKER_PRESENCE: Final = "workspaced.worker.presence"
"""Asks every worker who it is."""
WORKER_STATUS: Final = "workspaced.worker.status"
"""Asks a worker what runs, what waits, and what is wrong."""
WORKER_DEAD: Final = "workspaced.worker.dead"
"""Asks a worker for dead letters."""

REVOCATIONS: Final = "workspaced.token.revoked"
"""Tells gateways and chat services that a bearer token was revoked."""

ALL_IN: Final = "workspaced.in.>"
ALL_TIMERS: Final = "workspaced.timer.>"
ALL_RESULTS: Final = "workspaced.result.>"
ALL_UI: Final = "workspaced.ui.>"
ALL_RPCS: Final = "workspaced.rpc.>"

UI_STATE_COPY: Final = "workspaced.ui.{{wildcard(1)}}.state"
"""Where the server republishes a stored state; `wildcard(1)` is the `*` of `STATES`."""
UI_LOG_COPY: Final = "workspaced.ui.{{wildcard(1)}}.log.{{wildcard(2)}}"
"""Where the server republishes a stored log line; the wildcards are those of `LOGS`."""
UI_EXEC_COPY: Final = "workspaced.ui.{{wildcard(1)}}.exec.{{wildcard(2)}}.{{wildcard(3)}}"
"""Where the server republishes what a process does; the wildcards are those of `EXECS`."""
ALL_UI_STATES: Final = "workspaced.ui.*.state"
"""The states of all chats, as frontends see them."""
ALL_UI_EXECS: Final = "workspaced.ui.*.exec.>"
"""Start, output and end of all chats' processes, as frontends see them."""

JETSTREAM: Final = "$JS.API"
"""Prefix of JetStream's API."""
ALL_SERVICES: Final = "$SRV.>"
"""Discovery, ping and statistics of NATS micro services."""
ALL_SERVERS: Final = "$SYS.REQ.SERVER.PING.STATSZ"
"""Asks all NATS servers for their versions and when they started."""
CONNECTIONS: Final = "$SYS.ACCOUNT.*.*"
"""Where the server says that a client of an account has connected, or is gone."""
GATEWAY_SERVICE: Final = "workspaced"
"""The name of the gateways' micro service."""
AUTH_CALLOUT: Final = "$SYS.REQ.USER.AUTH"
"""The server asks here whether a client may connect."""

_IN: Final = re.compile(
    r"workspaced\.in\.(?P<kind>tool|provisioner|agent)\.(?P<chat>[^.]+)\.(?P<sender>[^.]+)"
)
_NO_WHITESPACE: Final = re.compile(r"[^\s]+")


class Inbound(Struct, frozen=True):
    """The parts of an inbound message's subject."""

    kind: str
    """`tool`, `provisioner` or `agent`."""
    chat: str
    sender: str


def parse_inbound(subject: str) -> Inbound | None:
    """Split `workspaced.in.<kind>.<chat>.<sender>`; return None for any other subject."""
    found = _IN.fullmatch(subject)
    return Inbound(*found.groups()) if found else None


def inbound(kind: str, chat: str, sender: str) -> str:
    """Return the subject on which `sender` publishes an event about `chat`."""
    return f"workspaced.in.{kind}.{chat}.{sender}"


def state(chat: str) -> str:
    """Return the subject of the chat's stored state."""
    return f"workspaced.state.{chat}"


def dead(kind: str) -> str:
    """Return the subject of dead letters from senders of that kind."""
    return f"workspaced.dead.{kind}"


def alarm(milliseconds: int) -> str:
    """Return the subject of the schedule for an alarm at that time, in milliseconds since 1970."""
    return f"workspaced.timer.arm.{milliseconds}"


def agent_requests(chat: str, agent: str) -> str:
    """Return the wildcard subject of the gateway's requests to that agent, one for each tool."""
    return f"workspaced.agent.{chat}.{agent}.*"


def agent_request(chat: str, agent: str, tool: str) -> str:
    """Return the subject on which the gateway asks that agent to do what the tool does."""
    return f"workspaced.agent.{chat}.{agent}.{tool}"


def exec_output(chat: str, agent: str, process: str) -> str:
    """Return the subject on which an agent publishes what a process of `execute` does."""
    return f"workspaced.exec.{chat}.{agent}.{process}"


def exec_agent(subject: str) -> str:
    """Return the agent from a subject of `exec_output`."""
    return subject.split(".")[3]


def connections(account: str) -> str:
    """Return the part of `CONNECTIONS` that is about the clients of one account."""
    return f"$SYS.ACCOUNT.{account}.*"


def presence(chat: str, agent: str) -> str:
    """Return the subject of the agent's heartbeats."""
    return f"workspaced.presence.{chat}.{agent}"


def parse_presence(subject: str) -> tuple[str, str]:
    """Return chat and agent from the subject of a heartbeat."""
    _, _, chat, agent = subject.split(".", 3)
    return chat, agent


def ui(chat: str) -> str:
    """Return the wildcard subject of everything a frontend of the chat sees: states, logs and commands."""
    return f"workspaced.ui.{chat}.>"


def ui_log(chat: str, build: str) -> str:
    """Return the subject on which the server republishes the build's log lines."""
    return f"workspaced.ui.{chat}.log.{build}"


def ui_kind(subject: str) -> str:
    """Return what the server republished on a subject of `ui`: `state`, `log` or `exec`."""
    return subject.split(".")[3]


def ui_exec(chat: str, agent: str, process: str) -> str:
    """Return the subject on which the server republishes what that process does."""
    return f"workspaced.ui.{chat}.exec.{agent}.{process}"


def ui_execs(chat: str) -> str:
    """Return the wildcard subject on which the server republishes what the chat's processes do."""
    return f"workspaced.ui.{chat}.exec.>"


def direct_get(stream: str, subject: str = "") -> str:
    """Return the request subject that reads a stream: one subject's last message, or (without) any."""
    return f"{JETSTREAM}.DIRECT.GET.{stream}" + (f".{subject}" if subject else "")


def stream_info(stream: str) -> str:
    """Return the request subject for the configuration and state of a stream."""
    return f"{JETSTREAM}.STREAM.INFO.{stream}"


def next_messages(stream: str, consumer: str) -> str:
    """Return the request subject that pulls messages from a durable consumer."""
    return f"{JETSTREAM}.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def acks(stream: str, consumer: str) -> str:
    """Return the wildcard subject of the acks of that consumer's messages."""
    return f"$JS.ACK.{stream}.{consumer}.>"


def kick(server: str) -> str:
    """Return the request subject that makes that server disconnect a client."""
    return f"$SYS.REQ.SERVER.{server}.KICK"


def service_statistics(name: str) -> str:
    """Return the request subject that every instance of a micro service answers with its statistics."""
    return f"$SRV.STATS.{name}"


def check(subject: str) -> None:
    """Raise Refused for an invalid subject: whitespace in it would inject a protocol command."""
    if not _NO_WHITESPACE.fullmatch(subject):
        raise Refused(f"not a subject: {subject!r}")
