"""Reading snapshots in the stored form, and in those of earlier versions."""

from __future__ import annotations

import json

import pytest

from statemachine.chat import chat_from_json, chat_to_json
from statemachine.workspace import WorkspaceRecord
from tests.unit.facts import CHAT, START, chat, connected, lifecycle, requested, succeeded, uid

CURRENT = ("build", "last_start", "before_delete", "chosen")
AGENT_FIELDS = {
    "highest_sequence": "highest",
    "reported_connected": "told",
    "ever_connected": "seen",
    "ever_started": "begun",
}
"""Fields of an agent's facts -> their names in earlier versions."""


def earlier_form(text: str) -> str:
    """Return a snapshot as earlier versions stored it: the chat has its workspace's fields."""

    def reference(record: dict[str, object]) -> dict[str, object]:
        names = ("id", "name", "owner_name", "template_id")
        return {key: record[key] for key in names if key in record}

    stored = json.loads(text)
    if (current := stored.pop("current", None)) is not None:
        stored |= {key: current[key] for key in CURRENT if key in current}
        stored |= {"ref": reference(current), "past": current.get("superseded", [])}
    if "agents" in stored:
        stored["agents"] = [
            {AGENT_FIELDS.get(key, key): value for key, value in facts.items()}
            for facts in stored["agents"]
        ]
    previous = []
    for record in stored.pop("previous", []):
        kept = {key: record[key] for key in ("id", "build", "orphaned_at") if key in record}
        deleted = record.get("deleted", False)
        kept |= {"deleted": deleted, "overdue": record.get("grace_over", False)}
        kept |= {} if deleted else {"ref": reference(record)}
        previous.append(kept)
    return json.dumps(stored | {"former": previous})


STORIES = {
    "new": [],
    "built": [requested(), succeeded(), connected(1), lifecycle(2, "ready")],
    "built again": [requested(), succeeded(), requested(2, START), succeeded(2)],
    "replaced": [requested(), succeeded(), requested(1, START, "v")],
}


@pytest.mark.parametrize("name", STORIES)
def test_a_snapshot_of_an_earlier_version_is_read(name: str) -> None:
    snapshot = chat(*STORIES[name])

    assert chat_from_json(earlier_form(chat_to_json(snapshot))) == snapshot


def test_a_field_of_a_later_version_is_ignored() -> None:
    stored = chat_to_json(chat(requested(), succeeded(), connected(1)))

    later = json.loads(stored) | {"mood": "good"}
    later["agents"][0]["mood"] = "good"

    assert chat_from_json(json.dumps(later)) == chat_from_json(stored)


@pytest.mark.parametrize("text", ["{", "[]", '{"chat_id": 1}', '{"chat_id": "c", "ref": "w"}'])
def test_a_damaged_snapshot_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 — whatever is wrong with it
        chat_from_json(text)


def test_fields_with_their_default_are_not_stored() -> None:
    assert json.loads(chat_to_json(chat())) == {"chat_id": CHAT}
    assert chat().current is None
    assert WorkspaceRecord(id=uid("w")).build is None
