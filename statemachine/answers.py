"""The JSON that tools answer with (contract §5)."""

from __future__ import annotations

from typing import Any, Final

from statemachine.agents import Unselectable, choose
from statemachine.calls import Answered
from statemachine.events import Lifecycle
from statemachine.hiding import MASK
from statemachine.parameters import Misfits, Parameter, masked
from statemachine.states import State
from statemachine.templates import Preset, Template, shown_readme
from statemachine.workspace import UNSETTLED, Workspace

QUOTA: Final = "INSUFFICIENT_QUOTA"
PAGE: Final = 10
"""Templates a page."""


def error(message: str) -> Answered:
    """Answer what is wrong with the call itself."""
    return Answered({"error": message}, is_error=True)


def readiness(workspace: Workspace) -> dict[str, Any]:
    """Return the readiness keys of a settled chat; ready adds nothing."""
    state, failure = workspace.state, workspace.failure
    message = failure.message if failure else ""
    if state is State.SELECTION_ERROR:
        return {"agent_status": "selection_error", "agent_error": message}
    if state is State.AGENT_NOT_READY:
        return {"agent_status": "not_ready", "agent_error": message}
    build = workspace.start_build
    if build is None or not build.succeeded or build.outcome is None:
        return {}
    if not build.outcome.agents:
        return {"agent_status": "no_agent"}
    chosen = choose(build.outcome.agents)
    if isinstance(chosen, Unselectable):
        return {"agent_status": "selection_error", "agent_error": chosen.message}
    facts = workspace.facts_of(chosen.id)
    lifecycle = facts.lifecycle if facts else None
    settled = lifecycle not in (None, Lifecycle.READY, *UNSETTLED)
    if settled or state is State.SCRIPTS_FAILED:
        return {"startup_scripts": "startup_scripts_failed", "lifecycle_state": str(lifecycle)}
    if state is State.SCRIPTS_TIMED_OUT:
        return {"startup_scripts": "startup_scripts_timeout"}
    return {}


def build_failure(workspace: Workspace, build_id: str, action: str) -> Answered:
    """Answer what became of a build that did not end well. `action`: create, start, stop."""
    build = workspace.build
    outcome = build.outcome if build is not None and build.id == build_id else None
    message = workspace.failure.message if workspace.failure else "the build did not succeed"
    text = f"workspace build failed: {message}"
    if outcome is None or outcome.error_code != QUOTA:
        return Answered({"error": text, "build_id": build_id})
    result: dict[str, Any] = {
        "error_code": QUOTA,
        "error": text,
        "title": "Workspace quota reached",
        "message": f"Could not {action} the workspace: the owner's quota is used up. "
        "Delete a workspace that is no longer needed, or ask an administrator for more.",
        "build_id": build_id,
    }
    if outcome.quota is not None:
        result["quota"] = {
            "credits_consumed": _number(outcome.quota.credits_consumed),
            "budget": _number(outcome.quota.budget),
        }
    return Answered(result)


def superseded(build_id: str, chat: Workspace) -> Answered:
    """Answer a call whose build another one took over, or whose workspace is gone."""
    gone = build_id in chat.deleted_builds
    by, by_id = (None, chat.deleted_builds[-1]) if gone else (chat.build, chat.latest_build)
    if by_id is None or by_id == build_id:
        return Answered({"error": "the workspace was deleted", "build_id": build_id})
    what = f"{by.transition} build" if by is not None else "build"
    return Answered(
        {
            "error": f"the build was superseded by {what} {by_id}",
            "build_id": build_id,
        }
    )


def invalid(misfits: Misfits, **more: str) -> Answered:
    """Answer which fields are wrong, all at once."""
    first = ", ".join(field for field, _ in misfits.fields)
    return Answered(
        {
            "error": "some values are not valid",
            "detail": f"wrong: {first}",
            "validations": misfits.validations,
            **more,
        }
    )


def templates_page(found: list[Template], page: int) -> Answered:
    """Answer list_templates with page `page` of `found`."""
    total = len(found)
    page = max(page, 1)
    shown = found[(page - 1) * PAGE : page * PAGE]
    return Answered(
        {
            "templates": [
                _given(
                    {
                        "id": template.id,
                        "name": template.name,
                        "organization_id": template.organization_id,
                    },
                    display_name=template.active.manifest.display_name,
                    description=template.active.manifest.description,
                )
                for template in shown
            ],
            "count": len(shown),
            "page": page,
            "total_pages": max(1, -(-total // PAGE)),
            "total_count": total,
        }
    )


def template_read(template: Template) -> Answered:
    """Answer read_template."""
    manifest, readme = template.active.manifest, template.active.readme
    result: dict[str, Any] = {
        "template": _given(
            {
                "id": template.id,
                "name": template.name,
                "active_version_id": template.active.id,
            },
            display_name=manifest.display_name,
            description=manifest.description,
            readme=shown_readme(readme) or None if readme else None,
        ),
        "parameters": [_parameter(parameter) for parameter in manifest.parameter],
    }
    if manifest.preset:
        result["presets"] = [_preset(template, preset) for preset in manifest.preset]
    return Answered(result)


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return _given(
        {
            "name": parameter.name,
            "type": str(parameter.type),
            "required": parameter.required,
            "mutable": parameter.mutable,
        },
        display_name=parameter.display_name,
        description=parameter.description,
        default=parameter.default if parameter.default is None or not parameter.sensitive else MASK,
        options=[
            _given({"name": option.name, "value": option.value}, description=option.description)
            for option in parameter.options
        ]
        or None,
        validation_regex=parameter.validation_regex,
        validation_min=_number(parameter.validation_min),
        validation_max=_number(parameter.validation_max),
        sensitive=parameter.sensitive or None,
    )


def _preset(template: Template, preset: Preset) -> dict[str, Any]:
    values = masked(template.active.manifest.parameter, preset.parameters)
    return _given(
        {
            "id": template.preset_id(preset),
            "name": preset.name,
            "default": preset.default,
            "parameters": [{"name": name, "value": value} for name, value in values.items()],
        },
        description=preset.description,
    )


def _given(keys: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return `keys` with those of `optional` that have a value."""
    return keys | {name: value for name, value in optional.items() if value is not None}


def _number(value: float | None) -> float | int | None:
    """Show a whole number as one."""
    return int(value) if value is not None and value.is_integer() else value
