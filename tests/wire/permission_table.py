"""The contract's table of permissions, written by hand: which participant may publish and subscribe to which subject.

It has every subject that workspaced, JetStream or NATS itself receives, for each participant. It is written
independently of the table in the code.
"""

from __future__ import annotations

from dataclasses import dataclass

STREAMS = ("IN", "JOB", "STATE", "LOG", "RESULT", "DEAD", "TIMER", "PRESENCE", "EXEC")
CONSUMERS = {"JOB": "pool-wire"}
"""The consumer of a stream that the test tries to access; for other streams it is `worker`."""
TOOLS = ("create_workspace", "start_workspace", "stop_workspace", "list_templates", "read_template")
READING = ("cancel", "keep", "cancel_build", "get_chat", "list_chats", "read_log", "read_events")
OPERATORS = ("status", "list_calls", "build_times", "list_dead", "read_dead")
TOKENS = ("issue_token", "list_tokens", "revoke_token", "check_token")
EXEC_TOOLS = (
    *("execute", "process_output", "process_input", "process_signal", "process_list"),
    *("read_file", "write_file", "edit_file", "list_files"),
)
POWERFUL = ("operator", "worker")
PARTIES = (*POWERFUL, "chat-service", "provisioner", "gateway", "agent", "frontend")

_STREAM_VERBS = (
    *("CREATE", "UPDATE", "DELETE", "PURGE", "INFO", "SNAPSHOT", "RESTORE"),
    *("MSG.GET", "MSG.DELETE", "LEADER.STEPDOWN", "PEER.REMOVE"),
)
_CONSUMER_VERBS = (
    *("DURABLE.CREATE", "DELETE", "INFO", "PAUSE", "RESET", "UNPIN"),
    *("LEADER.STEPDOWN", "MSG.NEXT"),
)
_SILENT = (
    "$JS.ACK",
    "$JS.FC",
    "$SYS",
    "$JS.EVENT",
    "_INBOX",
    "_R_",
    "workspaced.ui",
    "workspaced.res",
    "workspaced.cancel",
    "workspaced.token",
    "workspaced.agent",
)
"""Beginnings of subjects on which a publisher gets no answer."""


@dataclass(frozen=True)
class Ids:
    """The ids and inboxes of the participants, and ids that belong to others."""

    chat: str
    build: str
    agent: str
    other_chat: str
    other_build: str
    other_agent: str
    agent_inbox: str
    frontend_inbox: str

    def own_inbox(self, party: str) -> str:
        if party in POWERFUL:
            return "_INBOX"
        dynamic = {"agent": self.agent_inbox, "frontend": self.frontend_inbox}
        return dynamic.get(party, f"_INBOX_{party}")


def answered(subject: str) -> bool:
    """Return whether a permitted request on this subject is answered, even if it is invalid."""
    if ".MSG.NEXT." in subject or ".CONSUMER.RESET." in subject:
        return False  # an invalid pull gets no answer; each build of these tests proves that a valid one does
    return not subject.startswith(_SILENT) or subject.startswith("workspaced.result.")


def _jetstream(ids: Ids) -> list[str]:
    api = "$JS.API."
    found = [
        *(api + name for name in ("INFO", "STREAM.LIST", "STREAM.NAMES", "STREAM.CREATE.OTHER")),
        *(
            f"{api}DIRECT.GET.WORKSPACED_STATE.workspaced.state.{c}"
            for c in (ids.chat, ids.other_chat)
        ),
        *(
            f"{api}DIRECT.GET.WORKSPACED_RESULT.workspaced.result.{c}.1"
            for c in (ids.chat, ids.other_chat)
        ),
        f"{api}DIRECT.GET.WORKSPACED_STATE.workspaced.state.>",
        f"{api}DIRECT.GET.WORKSPACED_LOG.workspaced.log.{ids.chat}.{ids.build}",
        f"{api}DIRECT.GET.WORKSPACED_EXEC.workspaced.exec.{ids.chat}.{ids.agent}.x",
        f"{api}DIRECT.GET.WORKSPACED_PRESENCE.workspaced.presence.{ids.chat}.{ids.agent}",
    ]
    for short in STREAMS:
        stream, consumer = f"WORKSPACED_{short}", CONSUMERS.get(short, "worker")
        found += [f"{api}STREAM.{verb}.{stream}" for verb in _STREAM_VERBS]
        found += [f"{api}CONSUMER.{verb}.{stream}.{consumer}" for verb in _CONSUMER_VERBS]
        found += [f"{api}CONSUMER.{verb}.{stream}" for verb in ("CREATE", "LIST", "NAMES")]
        found += [
            f"{api}CONSUMER.CREATE.{stream}.mine",
            f"{api}CONSUMER.CREATE.{stream}.mine.workspaced.>",
            f"{api}DIRECT.GET.{stream}",
            f"$JS.ACK.{stream}.{consumer}.1.1.1.1795194287913284674.0",
            f"$JS.FC.{stream}.{consumer}.x",
        ]
    return found


def published(ids: Ids) -> list[str]:
    """Return every subject that a participant might publish on."""
    chats = (ids.chat, ids.other_chat)
    return [
        *(f"workspaced.in.tool.{chat}.svc" for chat in chats),
        *(f"workspaced.in.provisioner.{chat}.wire" for chat in chats),
        f"workspaced.in.agent.{ids.chat}.{ids.agent}",
        f"workspaced.in.agent.{ids.chat}.{ids.other_agent}",
        f"workspaced.in.agent.{ids.other_chat}.{ids.agent}",
        "workspaced.job.nobody",
        "workspaced.cancel.wire",
        *(f"workspaced.state.{chat}" for chat in chats),
        f"workspaced.log.{ids.chat}.{ids.build}",
        f"workspaced.log.{ids.chat}.{ids.other_build}",
        f"workspaced.log.{ids.other_chat}.{ids.build}",
        *(
            f"workspaced.{kind}.{chat}.{agent}.x"
            for kind in ("exec", "agent")
            for chat in chats
            for agent in (ids.agent, ids.other_agent)
        ),
        f"workspaced.ui.{ids.chat}.exec.{ids.agent}.x",
        *(f"workspaced.ui.{chat}.state" for chat in chats),
        f"workspaced.ui.{ids.chat}.log.{ids.build}",
        *(f"workspaced.result.{chat}.1" for chat in chats),
        *(f"workspaced.dead.{kind}" for kind in ("tool", "provisioner", "agent")),
        "workspaced.resend.provisioner",
        "workspaced.resend.agent",
        f"workspaced.timer.arm.{ids.chat}.x.1",
        f"workspaced.presence.{ids.chat}.{ids.agent}",
        f"workspaced.presence.{ids.chat}.{ids.other_agent}",
        f"workspaced.presence.{ids.other_chat}.{ids.agent}",
        *(f"workspaced.rpc.{name}" for name in (*TOOLS, *EXEC_TOOLS, *READING, "list_orphans")),
        *(f"workspaced.rpc.{name}" for name in ("template_archive", "agent_credential")),
        "workspaced.rpc.frontend_credential",
        *(f"workspaced.rpc.{name}" for name in TOKENS),
        *(f"workspaced.rpc.{name}" for name in OPERATORS),
        "workspaced.token.revoked",
        "workspaced.worker.status",
        "workspaced.worker.dead",
        "workspaced.worker.presence",
        "$SRV.PING",
        "$SYS.REQ.USER.AUTH",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.SERVER.PING.STATSZ",
        "$SYS.REQ.ACCOUNT.APP.CONNZ",
        "$SYS.ACCOUNT.APP.CONNECT",
        "$JS.EVENT.ADVISORY.API",
        *(f"_INBOX{who}.x" for who in ("", "_worker", "_chat-service", "_provisioner", "_gateway")),
        f"{ids.agent_inbox}.x",
        f"{ids.frontend_inbox}.x",
        "_R_.abcdef.x",
        *_jetstream(ids),
    ]


def may_publish(party: str, subject: str, ids: Ids) -> bool:
    """Return whether the contract, or for other subjects the documentation, permits it."""
    if party == "operator":
        return not subject.startswith("workspaced.timer.")
    if party == "worker":
        return not subject.startswith("workspaced.in.")
    get = "$JS.API.DIRECT.GET.WORKSPACED_"
    if party == "chat-service":
        rpcs = (*TOOLS, *EXEC_TOOLS, *READING, *TOKENS, "frontend_credential")
        return subject.startswith(
            ("workspaced.in.tool.", f"{get}STATE", f"{get}RESULT")
        ) or subject in {f"workspaced.rpc.{name}" for name in rpcs}
    if party == "provisioner":
        return subject.startswith(
            (
                "workspaced.in.provisioner.",
                "workspaced.log.",
                "$JS.API.CONSUMER.MSG.NEXT.WORKSPACED_JOB.pool-",
                "$JS.ACK.WORKSPACED_JOB.pool-",
                "workspaced.rpc.template_archive",
                "workspaced.rpc.agent_credential",
            )
        )
    if party == "gateway":
        answers = ("_INBOX_chat-service.", "_R_.")
        gets = (f"{get}STATE", f"{get}RESULT", f"{get}LOG", f"{get}EXEC")
        own = ("workspaced.token.revoked", "workspaced.worker.status", "workspaced.worker.dead")
        return subject in own or subject.startswith(
            ("workspaced.in.tool.", "workspaced.agent.", *gets, *answers)
        )
    if party == "agent":
        return subject in {
            f"workspaced.in.agent.{ids.chat}.{ids.agent}",
            f"workspaced.log.{ids.chat}.{ids.build}",
            f"workspaced.presence.{ids.chat}.{ids.agent}",
            f"workspaced.exec.{ids.chat}.{ids.agent}.x",
        }
    assert party == "frontend"
    return subject in {f"{get}STATE.workspaced.state.{ids.chat}", "workspaced.rpc.read_log"}


def subscribed(ids: Ids) -> list[str]:
    """Return every subject, and every wildcard, that a participant might subscribe to."""
    chats = (ids.chat, ids.other_chat)
    wide = (
        "in",
        "job",
        "cancel",
        "state",
        "log",
        "ui",
        "result",
        "dead",
        "resend",
        "rpc",
        "timer",
        "presence",
        "exec",
        "agent",
    )
    return [
        *(">", "*", "*.*", "*.>", "*.*.*.*", "workspaced.>", "workspaced.*", "workspaced.*.>"),
        *(f"workspaced.{name}.>" for name in wide),
        *(f"workspaced.in.{kind}.>" for kind in ("tool", "provisioner", "agent")),
        f"workspaced.in.agent.{ids.chat}.{ids.agent}",
        "workspaced.job.wire",
        *("workspaced.cancel.wire", "workspaced.cancel.other", "workspaced.cancel.*"),
        *(f"workspaced.state.{chat}" for chat in chats),
        *(f"workspaced.log.{chat}.{ids.build}" for chat in chats),
        *(f"workspaced.ui.{chat}.>" for chat in chats),
        *(f"workspaced.ui.{chat}.state" for chat in chats),
        *(f"workspaced.result.{chat}.1" for chat in chats),
        *(f"workspaced.presence.{chat}.{ids.agent}" for chat in chats),
        *(
            f"workspaced.agent.{chat}.{agent}.{tool}"
            for chat in chats
            for agent in (ids.agent, ids.other_agent)
            for tool in ("*", "execute")
        ),
        f"workspaced.exec.{ids.chat}.{ids.agent}.x",
        f"workspaced.ui.{ids.chat}.exec.{ids.agent}.x",
        f"workspaced.ui.{ids.chat}.exec.>",
        "workspaced.ui.*.state",
        "workspaced.resend.provisioner",
        "workspaced.resend.agent",
        "workspaced.rpc.get_chat",
        "workspaced.token.revoked",
        *("$SYS.>", "$SYS.REQ.USER.AUTH", "$SYS.ACCOUNT.>", "$SYS.ACCOUNT.APP.CONNECT"),
        *("$SRV.>", "$SRV.PING"),
        *("$JS.>", "$JS.API.>", "$JS.ACK.>", "$JS.EVENT.>", "$JSC.>", "_R_.>", "_INBOX.>"),
        *(f"_INBOX_{who}.>" for who in ("worker", "chat-service", "provisioner", "gateway")),
        "_INBOX.abcdefghijklmnopqrstuv.x",
        f"{ids.agent_inbox}.>",
        f"{ids.frontend_inbox}.>",
        f"_INBOX_{ids.other_agent}.>",
    ]


def may_subscribe(party: str, subject: str, ids: Ids) -> bool:
    """Return whether the contract, or for other subjects the documentation, permits it."""
    if party in POWERFUL or subject.startswith(f"{ids.own_inbox(party)}."):
        return True
    if party == "chat-service":
        return subject == "workspaced.token.revoked" or subject.startswith(
            ("workspaced.result.", "workspaced.ui.")
        )
    if party == "provisioner":
        return (
            subject
            in {
                *("workspaced.resend.provisioner", "workspaced.cancel.*"),
                *("workspaced.cancel.wire", "workspaced.cancel.other"),
                "workspaced.cancel.>",  # nats-server takes `>` for one token here; nobody publishes below
            }
        )
    if party == "gateway":
        own = ("$SYS.REQ.USER.AUTH", "$SYS.ACCOUNT.APP.CONNECT", "workspaced.token.revoked")
        return subject in own or subject.startswith(
            ("workspaced.rpc.", "workspaced.result.", "workspaced.ui.", "$SRV.")
        )
    if party == "agent":
        own = f"workspaced.agent.{ids.chat}.{ids.agent}."
        return subject == "workspaced.resend.agent" or subject.startswith(own)
    assert party == "frontend"
    own = f"workspaced.ui.{ids.chat}."
    return subject.startswith(own) and not subject.startswith(f"{own}exec.")
