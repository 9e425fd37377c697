"""Composes the builds that the tool rules request: to create, start, stop or delete a workspace."""

from __future__ import annotations

from typing import Any, Final

from statemachine import answers, naming
from statemachine.arguments import CreateArguments, StartArguments
from statemachine.calls import Call, CallOutcome, Known, Requested, Until, Wait
from statemachine.chat import Chat
from statemachine.events import BuildRequested, Retried, TemplateRef, Transition
from statemachine.messages import StartNotes
from statemachine.parameters import LastBuild, Misfits, reset, resolve
from statemachine.templates import Template, Version
from statemachine.views import name_of
from statemachine.workspace import BuiltTemplate, WorkspaceRecord

UPDATED: Final[StartNotes] = {
    "updated_to_active_version": True,
    "update_reason": "template requires active versions",
    "message": "the workspace was started with the template's active version, "
    "because the template requires it",
}


def fresh_id(seed: bytes, label: str) -> str:
    """Return a UUID derived from `seed` and `label`: the same arguments give the same UUID."""
    return naming.derived_id(label.encode() + b"/" + seed)


def allowed(template: Template, call: Call, known: Known) -> bool:
    """Return whether the chats of the call's organization may use the template."""
    listed = not known.policy.allowlist or template.id in known.policy.allowlist
    mine = template.organization_id == call.organization_id
    return mine and listed and template.active.manifest.agents_allowed


def create(
    call: Call,
    args: CreateArguments,
    chat: Chat,
    known: Known,
    *,
    replaced: Transition | None,
) -> CallOutcome:
    """Request the first build of a new workspace, or answer what is wrong with the call.

    `replaced` is the transition of the build that is requested for the chat's current workspace,
    which the new one replaces; None if no such build is needed.
    """
    template = known.catalog.templates.get(args.template_of(call.organization_id))
    if template is None or template.organization_id != call.organization_id:
        return answers.error(  # the same answer if it belongs to another organization
            f"template {args.shown_template} was not found; use list_templates to find one"
        )
    if not allowed(template, call, known):
        return answers.error(
            f"template {args.shown_template} is not available to this chat; "
            "use list_templates to find those that are"
        )
    manifest = template.active.manifest
    preset = args.preset_of(template)
    if args.wanted_preset is not None and preset is None:
        return answers.error(
            f"template '{template.name}' has no preset {args.wanted_preset}; read_template lists them"
        )
    values = resolve(
        manifest.parameter, args.parameters or {}, (preset.parameters if preset else {},)
    )
    if isinstance(values, Misfits):
        return answers.invalid(values)
    seed = known.seed + call.call_id.encode()
    try:
        name = naming.workspace_name(
            args.name, template.name, known.names.get(call.owner_id, frozenset()), seed
        )
    except naming.NameTakenError as error:
        return answers.invalid(Misfits((("name", f"'{error}' is in use already"),)))
    build = BuildRequested(
        workspace_id=fresh_id(seed, "workspace"),
        workspace_name=name,
        owner_name=call.owner_name,
        build_id=fresh_id(seed, "build"),
        build_number=1,
        transition=Transition.START,
        template=_template_ref(template.active),
        parameters=values,
        preset_id=template.preset_id(preset) if preset else None,
        ttl_ms=known.policy.ttl_ms,
        activity_bump_ms=known.policy.bump_ms,
        creates=True,
        call_id=call.call_id,
    )
    wait = _requested(build, Until.SETTLED)
    label = f"{call.call_id}/replaced"
    return Requested(
        build,
        wait,
        ending(chat, replaced, known, label, retried=Retried.ALWAYS) if replaced else None,
    )


def start(call: Call, args: StartArguments, chat: Chat, known: Known) -> CallOutcome:
    """Request a start build of the chat's workspace, or answer what is wrong with the call."""
    current, last = chat.current, chat.build
    built = version = _version_of(current, known)
    if built is None or version is None or last is None:
        return _unknown_template(chat)
    template = known.catalog.templates.get(version.template_id)
    extra: StartNotes = {}
    if (
        template is not None
        and template.active.manifest.require_active_version
        and last.template_version_id not in (None, template.active.id)
    ):
        version, extra = template.active, UPDATED
    declared, asked = version.manifest.parameter, args.parameters or {}
    carried = LastBuild(last.parameters, built.manifest.parameter)
    values = resolve(declared, asked, last=carried)
    if isinstance(values, Misfits):
        return answers.invalid(values, template_id=version.template_id)
    if names := reset(declared, asked, carried):
        extra = {**extra, "parameters_reset": list(names)}
    seed = known.seed + call.call_id.encode()
    build = _next_build(current, chat.owner_name or "", Transition.START, seed)
    if build is None:
        return _unknown_template(chat)
    build = build.model_copy(
        update={
            "template": _template_ref(version),
            "parameters": values,
            "call_id": call.call_id,
            "ttl_ms": known.policy.ttl_ms,
            "activity_bump_ms": known.policy.bump_ms,
        }
    )
    return Requested(build, _requested(build, Until.SETTLED, dict(extra)))


def stop(call: Call, chat: Chat, known: Known) -> CallOutcome:
    """Request a stop build of the chat's workspace, or answer that its template is unknown."""
    build = ending(chat, Transition.STOP, known, call.call_id)
    if build is None:
        return _unknown_template(chat)
    return Requested(build, _requested(build, Until.STOPPED))


def _requested(build: BuildRequested, until: Until, extra: dict[str, Any] | None = None) -> Wait:
    """Return the wait of the call that requests `build`."""
    return Wait(
        until=until,
        build_id=build.build_id,
        workspace_id=build.workspace_id,
        requested=True,
        extra=extra or {},
    )


def ending(
    chat: Chat,
    transition: Transition,
    known: Known,
    label: str,
    previous: WorkspaceRecord | None = None,
    *,
    retried: Retried | None = None,
) -> BuildRequested | None:
    """Return a stop or delete build of the chat's current workspace, or of the `previous` one.

    `retried`: when workers request it again if it ends without success.

    Return None if the workspace has no build, or if its template is unknown: no provisioner of this
    installation could do the build.
    """
    seed = known.seed + label.encode()
    record = previous or chat.current
    build = _next_build(record, chat.owner_name or "", transition, seed)
    version = _version_of(record, known)
    if build is None or (build.template is None and version is None):
        return None
    if version is not None:  # the last build may have used another version than our last job
        build = build.model_copy(update={"template": _template_ref(version)})
    return build.model_copy(update={"retried": retried}) if retried else build


def _next_build(
    record: WorkspaceRecord | None, owner_name: str, transition: Transition, seed: bytes
) -> BuildRequested | None:
    if record is None or (last := record.build) is None:
        return None
    return BuildRequested(
        workspace_id=record.id,
        workspace_name=record.name or record.id,
        owner_name=record.owner_name or owner_name,
        build_id=fresh_id(seed, "build"),
        build_number=last.number + 1,
        transition=transition,
        template=_event_template(last.template),
        parameters=last.parameters,
        preset_id=last.preset_id,
    )


def _version_of(record: WorkspaceRecord | None, known: Known) -> Version | None:
    """Return the template version of the last build, otherwise the template's active version.

    Return None if neither is known.
    """
    if record is None or record.build is None:
        return None
    last = record.build.template_version_id
    if last is not None and last in known.catalog.versions:
        return known.catalog.versions[last]
    template = known.catalog.templates.get(record.template_id) if record.template_id else None
    return template.active if template else None


def _template_ref(version: Version) -> TemplateRef:
    manifest = version.manifest
    return TemplateRef(
        id=version.template_id, name=manifest.name, version_id=version.id, pool=manifest.pool
    )


def _unknown_template(chat: Chat) -> CallOutcome:
    return answers.error(
        f"workspace '{name_of(chat)}' was made elsewhere, from a template that is not known here; "
        "change it where it was made"
    )


def _event_template(template: BuiltTemplate | None) -> TemplateRef | None:
    """Return a build's template in the form that events contain."""
    if template is None:
        return None
    return TemplateRef(
        id=template.id, name=template.name, version_id=template.version_id, pool=template.pool
    )
