"""Texts for people: state changes and log lines of a chat, and answers of tools with the next command. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from workspaced import Answer, Log, State

from handlers.cli.output import counted, indented, one_line, plain

Result = Mapping[str, Any]
SETTLED: Final = ("ready", "failed", "stopped", "none")
"""States that last until a new request, or a late fact, arrives."""
_BUILD_FAILED: Final = "workspace build failed: "
_SUPERSEDED: Final = re.compile(
    r"the build was superseded by (?P<what>.*build) (?P<id>[0-9a-f-]{36})"
)
_COMMANDS: Final = {
    "list_templates": "template list",
    "create_workspace": "create TEMPLATE --chat CHAT",
    "start_workspace": "start CHAT",
    "stop_workspace": "stop CHAT",
}
"""The command for each tool that the error of another names."""


# -- states and log lines ----------------------------------------------------------------------


def describe(event: State | Log) -> list[str]:
    """Return the lines for a state change or a piece of log."""
    if isinstance(event, Log):
        return [f"  | {line}" for line in plain(event.output).splitlines()]
    at = (event.time or datetime.now(UTC)).astimezone().strftime("%H:%M:%S.%f")[:-3]
    first, *more = _state_lines(event)
    return [f"{at}  {first}", *(f"{'':{len(at)}}  {text}".rstrip() for text in more)]


@dataclass(slots=True)
class ChangeDescriber:
    """Describes the messages of one chat, but only state changes that change the text."""

    _last: list[str] = field(default_factory=list)

    def lines(self, event: State | Log) -> list[str]:
        """Return the lines for the next event, which may be none."""
        if isinstance(event, State):
            lines = _state_lines(event)
            if lines == self._last or not event.version:
                return []
            self._last = lines
        return describe(event)


def workspace_name(chat: Mapping[str, Any]) -> str:
    """Return `<owner>/<name>` of a chat's workspace."""
    workspace = chat["workspace"]
    return "-" if workspace is None else f"{workspace['owner_name'] or '?'}/{workspace['name']}"


def _state_lines(state: State) -> list[str]:
    line = state.state
    if state.agent is not None:
        line += f"  (agent {one_line(state.agent.name)}: {state.agent.status})"
    if state.failure is None:
        return [line]
    first, *more = indented(state.failure.message, "") or [""]
    return [f"{line}  {state.failure.reason}: {first}", *more]


# -- answers of tools ----------------------------------------------------------------------------


def describe_result(answer: Answer, chat_id: str, server_flags: str = "") -> list[str]:
    """Return lines that explain an answer.

    `server_flags` are the flags with which other commands use the same servers.
    """
    log = f"workspaced log {chat_id} {{}}{server_flags}"
    return [*_result_lines(answer, log), *_remarks(answer)]


def _remarks(answer: Answer) -> list[str]:
    """Explain what of the request had no effect."""
    lines = []
    if answer.conflict:
        lines.append(
            "  but this call_id was used with another tool or other arguments: this is the answer to the "
            "first request; give each call its own --call-id"
        )
    for key, words in (
        ("ignored", "arguments that the tool does not have were ignored"),
        ("parameters_ignored", "parameters were ignored, because no build was requested"),
        (
            "parameters_reset",
            "parameters have their default now, because the last value no longer fits",
        ),
    ):
        names = answer.ignored if key == "ignored" else answer.result.get(key)
        if names:
            lines.append(f"  but {words}: {one_line(', '.join(map(str, names)))}")
    return lines


def _naming_commands(error: str) -> str:
    """Name the commands in place of the tools that an error for a model names."""
    for tool, command in _COMMANDS.items():
        error = re.sub(rf"\buse {tool}\b", f"use `workspaced {command}`", error)
    return error


def _result_lines(answer: Answer, log: str) -> list[str]:
    tool, result = answer.tool, answer.result
    if answer.is_error:
        return _with_rest(f"{tool} was refused: ", _naming_commands(str(result.get("error", ""))))
    if "error" not in result:
        return [_success(tool, result), *_readiness(result, log)]
    if "validations" in result:
        return _invalid(tool, result)
    if "error_code" in result:
        return _quota(result, log)
    return _failure(tool, result, log)


def _failure(tool: str, result: Result, log: str) -> list[str]:
    error, build_id = str(result["error"]), result.get("build_id")
    if build_id is None:
        return _with_rest(f"{tool} did not succeed: ", error)
    if (by := _SUPERSEDED.fullmatch(error)) is not None:
        return [
            f"{tool} was superseded: a {by['what']} took over from the one that it waited for",
            f"  build  {build_id}",
            f"  by     {by['id']}",
            f"  log    {log.format(by['id'])}",
        ]
    if not error.startswith(_BUILD_FAILED):
        return [*_with_rest(f"{tool} did not succeed: ", error), *_see(build_id, log)]
    what = indented(error.removeprefix(_BUILD_FAILED))
    return [f"{tool} failed: the workspace build did not succeed", *what, *_see(build_id, log)]


def _quota(result: Result, log: str) -> list[str]:
    title, quota = str(result.get("title") or result["error_code"]), result.get("quota")
    if quota is not None:
        title += f": {quota['credits_consumed']} of {quota['budget']} used"
    lines = [one_line(title)]
    for text in (result.get("message", ""), result["error"].removeprefix(_BUILD_FAILED)):
        lines += indented(str(text))
    return lines + (_see(result["build_id"], log) if "build_id" in result else [])


def _invalid(tool: str, result: Result) -> list[str]:
    wrong = [(one_line(v["field"]), one_line(v["detail"])) for v in result["validations"]]
    width = max((len(field) for field, _ in wrong), default=0)
    return [
        f"{tool} was not carried out: {one_line(result['error'])}",
        *(f"  {field:<{width}}  {detail}" for field, detail in wrong),
    ]


def _see(build_id: str, log: str) -> list[str]:
    return [f"  build  {build_id}", f"  log    {log.format(build_id)}"]


def _with_rest(words: str, text: str) -> list[str]:
    first, *more = indented(text, "") or [""]
    return [words + first, *(f"  {line}" for line in more)]


def _readiness(result: Result, log: str) -> list[str]:
    """Explain the readiness keys: the workspace exists, but its agent may not be ready."""
    reason = one_line(str(result.get("agent_error", "")))
    agent = {
        "no_agent": "it has no agent",
        "selection_error": f"none of its agents can be chosen: {reason}",
        "not_ready": "its agent has not connected"
        + (f": {reason}" if "agent_error" in result else " yet"),
    }
    scripts = {
        "startup_scripts_failed": f"its startup scripts failed ({result.get('lifecycle_state')}); "
        f"see their output with `{log.format(result.get('build_id', '')).strip()}`",
        "startup_scripts_timeout": "its startup scripts did not finish in time",
        "startup_scripts_unknown": "the result of its startup scripts is not known yet",
    }
    lines = []
    for key, words in (("agent_status", agent), ("startup_scripts", scripts)):
        if key in result:
            lines.append(f"  but {words.get(result[key], f'{key} is {result[key]}')}")
    return lines


def _success(tool: str, result: Result) -> str:
    words = _SUCCESSES.get(tool)
    return words(result) if words is not None else f"{tool} is done"


def _created(result: Result) -> str:
    name = _name(result)
    if result.get("created"):
        return f"created {name}, build {result.get('build_id')}"
    if result.get("status") == "stopped":
        return f"created nothing: {name} exists and is stopped; start_workspace starts it"
    built = f", from build {result['build_id']}" if "build_id" in result else ""
    return f"created nothing: {name} exists already{built}"


def _started(result: Result) -> str:
    if result.get("no_build"):
        return f"{_name(result)} runs already"
    more = ""
    if result.get("updated_to_active_version"):
        more = f", updated to the active version: {one_line(str(result.get('update_reason')))}"
    return f"started {_name(result)}, build {result.get('build_id')}{more}"


def _stopped(result: Result) -> str:
    if result.get("no_build"):
        return f"{_name(result)} is stopped already"
    return f"stopped {_name(result)}, build {result.get('build_id')}"


def _listed(result: Result) -> str:
    names = ", ".join(template["name"] for template in result["templates"])
    page = f"page {result['page']} of {result['total_pages']}"
    return f"{counted(result['total_count'], 'template')}, {page}{': ' if names else ''}{names}"


def _read(result: Result) -> str:
    template, presets = result["template"], result.get("presets", ())
    return (
        f"template {template['name']}: {counted(len(result['parameters']), 'parameter')}, "
        f"{counted(len(presets), 'preset')}, active version {template['active_version_id']}"
    )


def _name(result: Result) -> str:
    return one_line(str(result.get("workspace_name", "the workspace")))


_SUCCESSES: Final[Mapping[str, Callable[[Result], str]]] = {
    "create_workspace": _created,
    "start_workspace": _started,
    "stop_workspace": _stopped,
    "list_templates": _listed,
    "read_template": _read,
}
