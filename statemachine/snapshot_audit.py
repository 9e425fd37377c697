"""Compares snapshots with what their event logs fold to, and composes snapshots to replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from statemachine.chat import AgentFacts, Chat, chat_from_json
from statemachine.mask import MASK
from statemachine.replay import Difference, Fold
from statemachine.workspace import Build, WorkspaceRecord

_ABSENT: Final = "nothing"


def read(snapshot: str) -> Chat | None:
    """Parse a stored snapshot; return None if it is damaged."""
    try:
        return chat_from_json(snapshot)
    except ValueError:
        return None


def differences(snapshot: str, fold: Fold, open_calls: int) -> list[Difference]:
    """Return the differences between a stored snapshot and the snapshot that the log folds to.

    `open_calls` is the number of the chat's waiting calls.
    """
    stored = read(snapshot)
    if stored is None:
        return [Difference(None, "snapshot", "what can't be read", "a workspace")]
    folded = filled(fold, stored, open_calls)
    return list(_unlike("", _shown(stored), _shown(folded)))


def filled(fold: Fold, stored: Chat | None, open_calls: int) -> Chat:
    """Return the snapshot that a log folds to, completed with what the log does not contain.

    The values of parameters that the log hides come from the `stored` snapshot, and so does the
    deadline if the log does not record it. `open_calls` is the number of the chat's waiting calls.
    """
    chat = replace(fold.chat, open_calls=open_calls)
    if stored is None:
        return chat
    if not fold.deadline_recorded and stored.generation == chat.generation and chat.deadline:
        chat = replace(chat, deadline=stored.deadline or chat.deadline)
    known = {build.id: build for build in stored.builds()}
    agents = {(facts.workspace_id, facts.id): facts for facts in stored.agents}
    chat = replace(
        chat,
        agents=tuple(_as_detailed(f, agents.get((f.workspace_id, f.id))) for f in chat.agents),
    )
    chat = _with_builds(chat, lambda build: _as_detailed_build(build, known.get(build.id)))
    return _with_builds(chat, lambda build: _unmasked(build, known.get(build.id)))


def _as_detailed(facts: AgentFacts, stored: AgentFacts | None) -> AgentFacts:
    """Return an agent's facts without the reasons that an earlier version did not store."""
    if stored is None:
        return facts
    return replace(
        facts,
        loss_reason=stored.loss_reason and facts.loss_reason,
        disconnect_reason=stored.disconnect_reason and facts.disconnect_reason,
    )


def _as_detailed_build(build: Build, stored: Build | None) -> Build:
    """Return a build without what an earlier version did not store.

    It stored neither when a build began, which is then read as the time of its request, nor that it was made
    elsewhere.
    """
    if stored is None:
        return build
    undated = build.begun_at is not None and stored.begun_at == stored.started_at
    return replace(
        build,
        begun_at=stored.begun_at if undated else build.begun_at,
        elsewhere=stored.elsewhere and build.elsewhere,
    )


def without_hidden(chat: Chat) -> tuple[Chat, list[str]]:
    """Return a snapshot without the parameter values that are still hidden, and their names.

    Their values are lost. The next start uses the template's default for such a parameter. If there
    is no default and a value is required, the call must give one.
    """
    lost = [
        f"parameter {name!r} of build {build.id}"
        for build in chat.builds()
        for name, value in build.parameters.items()
        if value == MASK
    ]
    return _with_builds(chat, _without_masked), lost


def _without_masked(build: Build) -> Build:
    return replace(build, parameters={k: v for k, v in build.parameters.items() if v != MASK})


def _unmasked(build: Build, stored: Build | None) -> Build:
    """Return a build with the hidden values of its parameters replaced by those of the stored snapshot.

    `stored` is the build there, None if it is not there. A hidden parameter that it lacks is
    removed: an earlier repair of the snapshot removed it because its value was lost.
    """
    if stored is None:
        return build
    known = stored.parameters
    hidden = {name for name, value in build.parameters.items() if value == MASK}
    values = {
        name: known[name] if name in hidden else value
        for name, value in build.parameters.items()
        if name not in hidden or name in known
    }
    return replace(build, parameters=values)


def _with_builds(chat: Chat, change: Callable[[Build], Build]) -> Chat:
    """Return the snapshot with each build replaced by `change(build)`."""

    def changed(build: Build | None) -> Build | None:
        return build and change(build)

    def of(record: WorkspaceRecord) -> WorkspaceRecord:
        return replace(record, build=changed(record.build), last_start=changed(record.last_start))

    current = chat.current and of(chat.current)
    return replace(chat, current=current, previous=tuple(map(of, chat.previous)))


def _shown(chat: Chat) -> dict[str, Any]:
    """Return a snapshot as a JSON document. Fields that have their default are absent."""
    return msgspec.to_builtins(chat)  # type: ignore[no-any-return]


def _unlike(key: str, stored: Any, folded: Any) -> Iterator[Difference]:
    """Yield the differences between two documents, without the values of parameters."""
    if isinstance(stored, dict) and isinstance(folded, dict):
        for name in sorted(stored.keys() | folded.keys()):
            below = f"{key}.{name}" if key else name
            yield from _unlike(below, stored.get(name, _ABSENT), folded.get(name, _ABSENT))
    elif isinstance(stored, list) and isinstance(folded, list) and len(stored) == len(folded):
        for number, pair in enumerate(zip(stored, folded, strict=True)):
            yield from _unlike(f"{key}[{number}]", *pair)
    elif stored != folded and ".parameters" in f".{key}":
        yield Difference(None, key, MASK, MASK)
    elif stored != folded:
        yield Difference(None, key, stored, folded)
