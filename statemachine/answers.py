"""Builds the JSON results of the tools (docs/contract.md, section 5)."""

from __future__ import annotations

from typing import Final

from statemachine.calls import Answered, Wait
from statemachine.chat import UNSETTLED, Chat, never_present
from statemachine.events import Lifecycle
from statemachine.mask import MASK
from statemachine.messages import (
    BuildFailure,
    ListedTemplate,
    ParameterOption,
    QuotaReached,
    Readiness,
    ReadTemplateSummary,
    TemplateParameter,
    TemplatePreset,
    TemplateRead,
    TemplatesPage,
    ValuesRefused,
)
from statemachine.parameters import Misfits, Option, Parameter, masked
from statemachine.states import STATE_INFO, Phase, State
from statemachine.templates import Preset, Template, shown_readme
from statemachine.workspace import Unselectable, choose_agent

QUOTA: Final = "INSUFFICIENT_QUOTA"
PAGE: Final = 10
"""Number of templates on one page of list_templates."""


def error(message: str) -> Answered:
    """Return the answer of a call that is itself wrong; `message` says what is wrong with it."""
    return Answered({"error": message}, is_error=True)


def readiness(chat: Chat) -> Readiness:
    """Return the readiness keys of a settled chat: none if its workspace is ready."""
    state, failure = chat.state, chat.failure
    message = failure.message if failure else ""
    if state is State.SELECTION_ERROR:
        return {"agent_status": "selection_error", "agent_error": message}
    if state is State.AGENT_NOT_READY:
        return {"agent_status": "not_ready", "agent_error": message}
    build = chat.start_build
    if build is None or not build.succeeded or build.outcome is None:
        return {}
    if not build.outcome.agents:
        return {"agent_status": "no_agent"}
    chosen = choose_agent(build.outcome.agents)
    if isinstance(chosen, Unselectable):
        return {"agent_status": "selection_error", "agent_error": chosen.message}
    facts = chat.agent_facts(chosen.id)
    left_running = chat.phase is Phase.RUNNING and STATE_INFO[state].phase is Phase.FAILED_STOP
    if left_running and not (facts and facts.ever_present):
        return {"agent_status": "not_ready", "agent_error": never_present(chosen, facts)}
    lifecycle = facts.lifecycle if facts else None
    settled = lifecycle not in (None, Lifecycle.READY, *UNSETTLED)
    if settled or state is State.SCRIPTS_FAILED:
        keys: Readiness = {"startup_scripts": "startup_scripts_failed"}
        if lifecycle is not None:
            keys["lifecycle_state"] = lifecycle
        return keys
    if state is State.SCRIPTS_TIMED_OUT:
        return {"startup_scripts": "startup_scripts_timeout"}
    return {}


def failure(error: str, build_id: str, workspace_id: str | None) -> Answered:
    """Return the build failure object of a build of a workspace; None if the workspace is not known."""
    result: BuildFailure = {"error": error, "build_id": build_id}
    if workspace_id is not None:
        result["workspace_id"] = workspace_id
    return Answered(result)


def build_failure(chat: Chat, build_id: str, action: str) -> Answered:
    """Return the answer of a call whose build, of the current workspace, did not succeed.

    `action` is `create`, `start` or `stop`; the message about a reached quota contains it.
    """
    build = chat.build
    outcome = build.outcome if build is not None and build.id == build_id else None
    message = chat.failure.message if chat.failure else "the build did not succeed"
    text = f"workspace build failed: {message}"
    workspace_id = chat.current.id if chat.current else chat.workspace_of(build_id)
    if outcome is None or outcome.error_code != QUOTA:
        return failure(text, build_id, workspace_id)
    result: QuotaReached = {
        "error_code": QUOTA,
        "error": text,
        "title": "Workspace quota reached",
        "message": f"Could not {action} the workspace: the owner's quota is used up. "
        "Delete a workspace that is no longer needed, or ask an administrator for more.",
        "build_id": build_id,
    }
    if workspace_id is not None:
        result["workspace_id"] = workspace_id
    if outcome.quota is not None:
        result["quota"] = {
            "credits_consumed": _number(outcome.quota.credits_consumed),
            "budget": _number(outcome.quota.budget),
        }
    return Answered(result)


def superseded(wait: Wait, chat: Chat) -> Answered:
    """Return the answer of a call whose build was superseded or whose workspace was deleted."""
    build_id = wait.build_id
    workspace_id = wait.workspace_id or chat.workspace_of(build_id)
    gone = build_id in chat.deleted_builds
    by, by_id = (None, chat.deleted_builds[-1]) if gone else (chat.build, chat.latest_build)
    if by_id is None or by_id == build_id:
        return failure("the workspace was deleted", build_id, workspace_id)
    what = f"{by.transition} build" if by is not None else "build"
    return failure(f"the build was superseded by {what} {by_id}", build_id, workspace_id)


def invalid(misfits: Misfits, *, template_id: str | None = None) -> Answered:
    """Return the answer that names every wrong field.

    start_workspace passes the `template_id`, which the answer then contains.
    """
    first = ", ".join(field for field, _ in misfits.fields)
    result: ValuesRefused = {
        "error": "some values are not valid",
        "detail": f"wrong: {first}",
        "validations": misfits.validations,
    }
    if template_id is not None:
        result["template_id"] = template_id
    return Answered(result)


def templates_page(found: list[Template], page: int) -> Answered:
    """Return the answer of list_templates: page `page` of `found`. The first page is 1."""
    total = len(found)
    page = max(page, 1)
    shown = found[(page - 1) * PAGE : page * PAGE]
    result: TemplatesPage = {
        "templates": [_listed(template) for template in shown],
        "count": len(shown),
        "page": page,
        "total_pages": max(1, -(-total // PAGE)),
        "total_count": total,
    }
    return Answered(result)


def _listed(template: Template) -> ListedTemplate:
    manifest = template.active.manifest
    listed: ListedTemplate = {
        "id": template.id,
        "name": template.name,
        "organization_id": template.organization_id,
    }
    if manifest.display_name is not None:
        listed["display_name"] = manifest.display_name
    if manifest.description is not None:
        listed["description"] = manifest.description
    return listed


def template_read(template: Template) -> Answered:
    """Return the answer of read_template."""
    manifest, readme = template.active.manifest, template.active.readme
    summary: ReadTemplateSummary = {
        "id": template.id,
        "name": template.name,
        "active_version_id": template.active.id,
    }
    if manifest.display_name is not None:
        summary["display_name"] = manifest.display_name
    if manifest.description is not None:
        summary["description"] = manifest.description
    if readme and (shown := shown_readme(readme)):
        summary["readme"] = shown
    result: TemplateRead = {
        "template": summary,
        "parameters": [_parameter(parameter) for parameter in manifest.parameter],
    }
    if manifest.preset:
        result["presets"] = [_preset(template, preset) for preset in manifest.preset]
    return Answered(result)


def _parameter(parameter: Parameter) -> TemplateParameter:
    shown: TemplateParameter = {
        "name": parameter.name,
        "type": parameter.type.value,
        "required": parameter.required,
        "mutable": parameter.mutable,
    }
    if parameter.display_name is not None:
        shown["display_name"] = parameter.display_name
    if parameter.description is not None:
        shown["description"] = parameter.description
    if parameter.default is not None:
        shown["default"] = MASK if parameter.sensitive else parameter.default
    if parameter.options:
        shown["options"] = [_option(option) for option in parameter.options]
    if parameter.validation_regex is not None:
        shown["validation_regex"] = parameter.validation_regex
    if parameter.validation_min is not None:
        shown["validation_min"] = _number(parameter.validation_min)
    if parameter.validation_max is not None:
        shown["validation_max"] = _number(parameter.validation_max)
    if parameter.sensitive:
        shown["sensitive"] = True
    return shown


def _option(option: Option) -> ParameterOption:
    shown: ParameterOption = {"name": option.name, "value": option.value}
    if option.description is not None:
        shown["description"] = option.description
    return shown


def _preset(template: Template, preset: Preset) -> TemplatePreset:
    values = masked(template.active.manifest.parameter, preset.parameters)
    shown: TemplatePreset = {
        "id": template.preset_id(preset),
        "name": preset.name,
        "default": preset.default,
        "parameters": [{"name": name, "value": value} for name, value in values.items()],
    }
    if preset.description is not None:
        shown["description"] = preset.description
    return shown


def _number(value: float) -> float | int:
    """Return a number without a fraction as an integer."""
    return int(value) if value.is_integer() else value
