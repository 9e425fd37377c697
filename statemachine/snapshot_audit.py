"""Snapshots beside the logs that they should be the fold of: what differs, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from statemachine.chat import Chat, chat_from_json
from statemachine.mask import MASK
from statemachine.replay import Difference, Fold
from statemachine.workspace import Build, WorkspaceRecord

_ABSENT: Final = "nothing"


def read(snapshot: str) -> Chat | None:
    """Return a stored snapshot, or None for one that is damaged."""
    try:
        return chat_from_json(snapshot)
    except ValueError:
        return None


def differences(snapshot: str, fold: Fold, open_calls: int) -> list[Difference]:
    """Return what a stored snapshot has otherwise than the log folds to."""
    stored = read(snapshot)
    if stored is None:
        return [Difference(None, "snapshot", "what can't be read", "a workspace")]
    folded = filled(fold, stored, open_calls)
    return list(_unlike("", _shown(stored), _shown(folded)))


def filled(fold: Fold, stored: Chat | None, open_calls: int) -> Chat:
    """Return the snapshot that a log folds to, with what is not in logs taken from the stored one.

    That is the values of parameters that the log hides, the limit of a log that does not say, and
    how many calls wait, which the calls say.
    """
    chat = replace(fold.chat, open_calls=open_calls)
    if stored is None:
        return chat
    if not fold.deadline_recorded and stored.generation == chat.generation and chat.deadline:
        chat = replace(chat, deadline=stored.deadline or chat.deadline)
    known = {build.id: build.parameters for build in stored.builds()}
    return _with_parameters(chat, lambda build: _unmasked(build, known.get(build.id)))


def without_hidden(chat: Chat) -> tuple[Chat, list[str]]:
    """Return a snapshot without the values that nobody knows any more, and what they were of.

    A next build takes the template's default for them, or asks for a value.
    """
    lost = [
        f"parameter {name!r} of build {build.id}"
        for build in chat.builds()
        for name, value in build.parameters.items()
        if value == MASK
    ]
    plain = _with_parameters(
        chat, lambda build: {k: v for k, v in build.parameters.items() if v != MASK}
    )
    return plain, lost


def _unmasked(build: Build, known: Mapping[str, str] | None) -> dict[str, str]:
    """Return a build's parameters with the values it has in the stored snapshot, if it is there.

    One that the stored build has not was given up when that was rebuilt.
    """
    if known is None:
        return build.parameters
    hidden = {name for name, value in build.parameters.items() if value == MASK}
    return {
        name: known[name] if name in hidden else value
        for name, value in build.parameters.items()
        if name not in hidden or name in known
    }


def _with_parameters(chat: Chat, change: Callable[[Build], dict[str, str]]) -> Chat:
    """Return the snapshot with other parameters in each of its builds."""

    def changed(build: Build | None) -> Build | None:
        return build and replace(build, parameters=change(build))

    def of(record: WorkspaceRecord) -> WorkspaceRecord:
        return replace(record, build=changed(record.build), last_start=changed(record.last_start))

    current = chat.current and of(chat.current)
    return replace(chat, current=current, previous=tuple(map(of, chat.previous)))


def _shown(chat: Chat) -> dict[str, Any]:
    """Return a snapshot as a document, without the fields that have their default."""
    return msgspec.to_builtins(chat)  # type: ignore[no-any-return]


def _unlike(key: str, stored: Any, folded: Any) -> Iterator[Difference]:
    """Yield where two documents differ; values of parameters may be secret, and are not told."""
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
