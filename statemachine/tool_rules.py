"""The tool rules: `evaluate` is a pure function of a call, its chat and the loaded rows.

Only this module decides whether a call is answered, waits, or requests a build.
docs/internals/tool-rules.md lists the branches with their numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, cast

from msgspec.structs import replace

from statemachine import answers, requests
from statemachine.arguments import (
    ARGUMENTS,
    BadArguments,
    CreateArguments,
    ListArguments,
    NoArguments,
    ReadArguments,
    StartArguments,
    arguments,
    given_parameters,
)
from statemachine.calls import (
    Answered,
    Call,
    CallOutcome,
    Known,
    Load,
    Requested,
    Resumed,
    Until,
    Wait,
    Waiting,
)
from statemachine.chat import Chat
from statemachine.events import BuildRequested, Retried, Transition, WaitResumed
from statemachine.exec_tools import EXEC_TOOLS
from statemachine.messages import (
    AlreadyBuilt,
    AlreadyExists,
    AlreadyRunning,
    Created,
    IsStopped,
    Readiness,
    Started,
    StartNotes,
    UnusedParameters,
)
from statemachine.states import STATE_INFO, Phase, State
from statemachine.views import full_name, id_of, name_of
from statemachine.workspace import WorkspaceRecord

NO_WORKSPACE: Final = "the chat has no workspace; use create_workspace to make one"

BUSY: Final = "too busy: "
"""Prefix of the error when a call is refused because a limit is reached.

The gateway answers an rpc with the service error 429 in this case.
"""


def evaluate(call: Call, chat: Chat, known: Known) -> CallOutcome:
    """Evaluate a call: return its answer, what it waits for, or the build to request for it.

    Workers call this when the call arrives and again whenever its chat moves, until it is answered.
    """
    verdict = _verdict(call, chat, known)
    return check_limits(call, verdict, chat, known.load) or verdict


def _verdict(call: Call, chat: Chat, known: Known) -> CallOutcome:
    rules = _RULES.get(call.tool)
    if rules is None:
        return answers.error(
            f"unknown tool {call.tool!r}; there are: {', '.join(TOOLS)}; and by rpc and HTTP only: "
            f"{', '.join(EXEC_TOOLS)}"
        )
    if call.wait is not None and call.wait.until is Until.SETTLED:
        return _outcome_of_start(call, call.wait, chat)
    if call.wait is not None and call.wait.until is Until.STOPPED:
        return _outcome_of_stop(call.wait, chat)
    args = arguments(ARGUMENTS[call.tool], call.args)
    if isinstance(args, BadArguments):
        return answers.error(f"{call.tool}: {args.message}")
    if call.wait is not None:
        return _evaluate_again(call, args, chat, known, rules)
    if (call.organization_id, call.owner_id) != (chat.organization_id, chat.owner_id):
        return answers.error("the chat belongs to another organization or owner")
    return rules(call, args, chat, known)


def check_limits(call: Call, outcome: CallOutcome, chat: Chat, load: Load) -> Answered | None:
    """Return the refusal of a call whose `outcome` would exceed a limit, otherwise None.

    The limits of waiting calls apply only to new calls, so a waiting call can continue to wait. The
    limit of jobs of a pool applies to every start build.
    """
    if isinstance(outcome, Answered):
        return None
    if call.wait is None and chat.open_calls >= load.calls_per_chat:
        return _too_busy(
            f"{chat.open_calls} calls of this chat wait already; ask when one is answered"
        )
    if call.wait is None and load.full:
        return _too_busy("the limit of waiting calls of all chats is reached")
    if isinstance(outcome, Requested) and outcome.build.transition is Transition.START:
        pool = outcome.build.template.pool if outcome.build.template else ""
        if pool in load.full_pools:
            return _too_busy(
                f"the limit of builds that wait for a provisioner of pool '{pool}' is reached"
            )
    return None


def _too_busy(why: str) -> Answered:
    message = f"{BUSY}{why}. Nothing was done; try again later, with a new call_id"
    return Answered({"error": message}, is_error=True)


def canceled(call: Call, chat: Chat) -> Answered:
    """Return the answer of a canceled call. The build that it waits for continues."""
    wait, about = call.wait, STATE_INFO[chat.state]
    if wait is None or chat.build is None:
        return answers.error("the call was canceled before a build was requested")
    if about.phase in (Phase.BEING_BUILT, Phase.BEING_STOPPED):
        error = f"the call was canceled; the {chat.build.transition} build goes on"
        return answers.failure(error, chat.build.id, id_of(chat))
    keys: dict[State, Readiness] = {
        State.AGENT_CONNECTING: {"agent_status": "not_ready"},
        State.SCRIPTS_RUNNING: {"startup_scripts": "startup_scripts_unknown"},
    }
    return _success(call, wait, chat, keys.get(chat.state, {}))


def _create(call: Call, args: CreateArguments, chat: Chat, known: Known) -> CallOutcome:
    if problem := args.problem():
        return answers.error(problem)
    match chat.phase:
        case Phase.BEING_BUILT:
            return _wait_for_build(call, chat, Until.SETTLED)
        case Phase.BEING_STOPPED:
            return _wait_for_build(call, chat, Until.OVER)
        case Phase.STOPPED:
            stopped: IsStopped = {
                "created": False,
                "workspace_id": id_of(chat),
                "workspace_name": name_of(chat),
                "status": "stopped",
                "message": "the workspace is stopped; use start_workspace to start it",
                **_unused_parameters(call),
            }
            return Answered(stopped)
        case Phase.RUNNING if chat.usable:
            return _use_running(call, chat)
        case phase:
            return requests.create(call, args, chat, known, replaced=_replaced_by(chat, phase))


def _replaced_by(chat: Chat, phase: Phase) -> Transition | None:
    """Return the transition of the build for the workspace that create_workspace replaces; None without one."""
    if chat.current is None:
        return None
    if phase is Phase.FAILED_DELETE:
        return Transition.DELETE
    # A build whose terminal fact was rejected may have succeeded, so somebody's work may be in its workspace.
    unknown = STATE_INFO[chat.state].overdue and chat.build is not None and not chat.build.outcome
    empty = chat.current.never_started and not unknown
    return Transition.DELETE if empty else Transition.STOP


def _start(call: Call, args: StartArguments, chat: Chat, known: Known) -> CallOutcome:
    match chat.phase:
        case Phase.NOTHING:
            return answers.error(NO_WORKSPACE)
        case Phase.FAILED_DELETE:
            return answers.error(
                f"a delete of workspace '{name_of(chat)}' failed, and what it left can't be started; "
                "use create_workspace to make a new one"
            )
        case Phase.BEING_BUILT:
            return _wait_for_build(call, chat, Until.SETTLED)
        case Phase.BEING_STOPPED:
            return _wait_for_build(call, chat, Until.OVER)
        case Phase.RUNNING:
            return _use_running(call, chat)
        case _:
            return requests.start(call, args, chat, known)


def _stop(call: Call, args: NoArguments, chat: Chat, known: Known) -> CallOutcome:
    del args
    match chat.phase:
        case Phase.NOTHING:
            return answers.error(NO_WORKSPACE)
        case Phase.BEING_BUILT | Phase.BEING_STOPPED:
            return _wait_for_build(call, chat, Until.OVER)
        case Phase.STOPPED:
            return Answered(
                {
                    "stopped": True,
                    "workspace_id": id_of(chat),
                    "workspace_name": name_of(chat),
                    "no_build": True,
                }
            )
        case _:
            return requests.stop(call, chat, known)


def _list(call: Call, args: ListArguments, chat: Chat, known: Known) -> CallOutcome:
    del chat
    words = (args.query or "").strip().lower()
    found = [
        template
        for template in known.catalog.templates.values()
        if requests.allowed(template, call, known)
        and any(
            words in (text or "").lower()
            for text in (
                template.name,
                template.active.manifest.display_name,
                template.active.manifest.description,
            )
        )
    ]
    found.sort(key=lambda template: (template.name.lower(), template.name))
    return answers.templates_page(found, args.page or 1)


def _read(call: Call, args: ReadArguments, chat: Chat, known: Known) -> CallOutcome:
    del chat
    if problem := args.problem():
        return answers.error(problem)
    template = known.catalog.templates.get(args.id)
    if template is None or not requests.allowed(template, call, known):
        return answers.error(f"template {args.id} was not found; use list_templates to find one")
    return answers.template_read(template)


def _wait_for_build(call: Call, chat: Chat, until: Until) -> CallOutcome:
    """Let the call wait for the running build, with a new limit if its limit has passed."""
    if chat.build is None:
        return answers.error(NO_WORKSPACE)
    wait = Wait(until=until, build_id=chat.build.id, workspace_id=id_of(chat))
    if STATE_INFO[chat.state].settled:
        return Resumed(WaitResumed(build_id=chat.build.id, call_id=call.call_id), wait)
    return Waiting(wait)


def _use_running(call: Call, chat: Chat) -> CallOutcome:
    """Answer with the readiness of a running workspace.

    Let the call wait while the workspace's agent connects or its startup scripts run.
    """
    build = chat.start_build
    if build is None:
        return answers.error(NO_WORKSPACE)
    wait = Wait(until=Until.SETTLED, build_id=build.id, workspace_id=id_of(chat), running=True)
    if not STATE_INFO[chat.state].settled:
        return Waiting(wait)
    answer = _success(call, wait, chat, answers.readiness(chat))
    return dataclasses.replace(answer, found_running=True)


def _outcome_of_start(call: Call, wait: Wait, chat: Chat) -> CallOutcome:
    """Answer with the outcome of the start build, or of the start build that superseded it."""
    build, gone = chat.build, wait.build_id in chat.deleted_builds
    if gone or build is None or build.transition is not Transition.START:
        return answers.superseded(wait, chat)
    running = wait.running and wait.build_id == build.id
    followed = replace(wait, build_id=build.id, workspace_id=id_of(chat), running=running)
    if not STATE_INFO[chat.state].settled:
        return Waiting(followed)
    if STATE_INFO[chat.state].phase is Phase.RUNNING:
        return _success(call, followed, chat, answers.readiness(chat))
    return answers.build_failure(chat, build.id, _ACTIONS[call.tool])


def _outcome_of_stop(wait: Wait, chat: Chat) -> CallOutcome:
    """Answer with the outcome of the stop build that the call requested."""
    if chat.build is None or chat.build.id != wait.build_id:
        return answers.superseded(wait, chat)
    if not STATE_INFO[chat.state].settled:
        return Waiting(wait)
    if STATE_INFO[chat.state].phase is Phase.STOPPED:
        return _stopped(wait, chat)
    return answers.build_failure(chat, wait.build_id, "stop")


def _evaluate_again(call: Call, args: Any, chat: Chat, known: Known, rules: Rules) -> CallOutcome:
    """Apply the rules to a call again after the build that it waited for.

    If the build has exceeded its limit without an end, answer with its failure instead.
    """
    about = STATE_INFO[chat.state]
    waited = about.phase in (Phase.BEING_BUILT, Phase.BEING_STOPPED)
    if waited and about.settled and chat.build is not None:
        return answers.build_failure(chat, chat.build.id, _ACTIONS[call.tool])
    return rules(call, args, chat, known)


def _success(call: Call, wait: Wait, chat: Chat, keys: Readiness) -> Answered:
    """Return the tool's answer after a success, with the readiness keys `keys`."""
    name, workspace_id = name_of(chat), id_of(chat)
    unused: UnusedParameters = {} if wait.requested else _unused_parameters(call)
    if call.tool == "start_workspace":
        if wait.running:
            running: AlreadyRunning = {
                "started": True,
                "workspace_id": workspace_id,
                "workspace_name": name,
                "no_build": True,
                **keys,
                **unused,
            }
            return Answered(running)
        notes = cast(StartNotes, wait.extra)
        started: Started = {
            "started": True,
            "workspace_id": workspace_id,
            "workspace_name": name,
            "build_id": wait.build_id,
            **notes,
            **keys,
            **unused,
        }
        return Answered(started)
    if call.tool == "stop_workspace":
        return _stopped(wait, chat)
    if wait.requested:
        created: Created = {
            "created": True,
            "workspace_id": workspace_id,
            "workspace_name": full_name(chat),
            "build_id": wait.build_id,
            **keys,
        }
        return Answered(created)
    exists: AlreadyExists = {
        "created": False,
        "workspace_id": workspace_id,
        "workspace_name": name,
        "status": "already_exists",
        "message": "the workspace is running already"
        if wait.running
        else "the workspace that was being built is there now",
        **keys,
        **unused,
    }
    if wait.running:
        return Answered(exists)
    built: AlreadyBuilt = {"build_id": wait.build_id, **exists}
    return Answered(built)


def _stopped(wait: Wait, chat: Chat) -> Answered:
    return Answered(
        {
            "stopped": True,
            "workspace_id": id_of(chat),
            "workspace_name": name_of(chat),
            "build_id": wait.build_id,
        }
    )


def _unused_parameters(call: Call) -> UnusedParameters:
    """Return the key that names the parameters of a call that requests no build."""
    names = given_parameters(call.args)
    return {"parameters_ignored": names} if names else {}


Rules = Callable[[Call, Any, Chat, Known], CallOutcome]
_RULES: Final[dict[str, Rules]] = {
    "create_workspace": _create,
    "start_workspace": _start,
    "stop_workspace": _stop,
    "list_templates": _list,
    "read_template": _read,
}
_ACTIONS: Final = {
    "create_workspace": "create",
    "start_workspace": "start",
    "stop_workspace": "stop",
}
TOOLS: Final = tuple(ARGUMENTS)
"""The names of the tools."""


def deletion(chat: Chat, known: Known, label: str) -> BuildRequested | WaitResumed | None:
    """Evaluate a request to delete the chat's workspace.

    Return the delete build to request, or a new limit for the delete build that exceeded its limit.
    Return None if there is no workspace, a delete build is running, or the template is unknown.
    `label` identifies the request; ids are derived from it.
    """
    build = chat.build
    if build is None:
        return None
    deleting = build.transition is Transition.DELETE and chat.phase is Phase.BEING_STOPPED
    if deleting and not STATE_INFO[chat.state].settled:
        return None
    if deleting:
        return WaitResumed(build_id=build.id, call_id=label)
    return requests.ending(chat, Transition.DELETE, known, label, retried=Retried.IF_FAILED)


def expiry(chat: Chat, known: Known, label: str) -> BuildRequested | None:
    """Return the stop build to request when the lifetime of the workspace is over.

    Return None if no lifetime applies to the workspace now, or if its template is unknown.
    """
    if chat.expires_at is None:
        return None
    return requests.ending(chat, Transition.STOP, known, label, retried=Retried.ALWAYS)


def unrequested(
    chat: Chat, record: WorkspaceRecord, transition: Transition, known: Known, label: str
) -> BuildRequested | None:
    """Return the build that workers request on their own for the current workspace or a replaced one.

    Return None if another chat has the workspace now, or if its template is unknown.
    """
    if record is chat.current:
        return requests.ending(chat, transition, known, label, retried=Retried.ALWAYS)
    if record.id in known.had:
        return None
    return requests.ending(chat, transition, known, label, record, retried=Retried.ALWAYS)


def orphan(chat: Chat, known: Known, workspace_id: str, label: str) -> BuildRequested | None:
    """Return the build to request for an orphan of the chat, or None.

    It is a stop build. But if the workspace was the chat's and its delete failed, it is another
    delete build. A delete that was canceled before it began changed nothing, so such a workspace is
    stopped. Return None if the workspace is not an orphan, another chat owns it, or its template is
    unknown.
    """
    record = chat.previous_workspace(workspace_id)
    if record is None or record.orphaned_at is None or workspace_id in known.had:
        return None
    last = record.build if record.ours else None
    failed_delete = last is not None and last.transition is Transition.DELETE and not last.untouched
    again = Transition.DELETE if failed_delete else Transition.STOP
    return requests.ending(chat, again, known, label, record, retried=Retried.ALWAYS)
