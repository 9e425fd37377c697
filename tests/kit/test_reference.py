"""The tables of docs/provisioners.md say what the code says."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError
from workspaced import build_log
from workspaced.provisioning import session

from bus.nats_client import NEEDED_PAYLOAD
from bus.streams import pool_consumer
from handlers.access.permissions import provisioner_permissions
from handlers.gateway.queries import CHUNK
from handlers.template_archive import MAX_PACKED_BYTES
from statemachine import events
from statemachine.chat import Limits
from statemachine.messages import Archive, BuildJob, JobTemplate
from tests.rigs.processes import ROOT

PAGE = (ROOT / "docs/provisioners.md").read_text().partition("## Reference\n")[2]
OF_BUILDS = {"workspace_id", "build_id", "build_number", "transition"}


def rows(title: str) -> list[list[str]]:
    """Return the rows of the first table below a heading."""
    below = PAGE.partition(f"### {title}\n")[2].partition("\n###")[0]
    table = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def limit(words: str) -> str:
    return next(value for what, value in rows("Limits") if words in what)


def test_subjects_are_those_that_a_key_permits() -> None:
    permitted = provisioner_permissions("<pool>", "<name>")
    described = {code for _, subjects in rows("Subjects") for code in codes(subjects)}

    assert described - {"inbox_prefix"} == {*permitted.publish, *permitted.subscribe}


def test_the_keys_of_jobs() -> None:
    described = {key: text for cell, text in rows("Jobs") for key in codes(cell)}

    assert described.keys() == get_type_hints(BuildJob).keys()
    template = {*get_type_hints(JobTemplate), *get_type_hints(Archive)}
    assert set(codes(described["template"])) - {"template.toml"} == template


@pytest.mark.parametrize(
    "model",
    [
        events.BuildStarted,
        events.BuildSucceeded,
        events.BuildFailed,
        events.BuildCanceled,
        events.WorkspaceDeleted,
        events.AgentExited,
    ],
)
def test_the_keys_of_facts(model: Any) -> None:
    described = {codes(event)[0]: keys for event, keys in rows("Facts")}
    assert len(described) == 6
    text = described[model.name]
    own = [key for key in model.model_fields if key not in OF_BUILDS]
    found = [code.rstrip("?") for code in codes(text)]

    assert [key for key in dict.fromkeys(found) if key in own] == own
    assert ("without `transition`" in text) == ("transition" not in model.model_fields)
    for key in own:
        required = model.model_fields[key].default is not None
        assert f"`{key}`" in text if required else f"`{key}?`" in text, key
    for nested in ("agents", "quota"):
        if nested in own:
            inner = events.ReportedAgent if nested == "agents" else events.Quota
            assert set(inner.model_fields) <= set(found)


def test_limits() -> None:
    assert limit("+WPI").startswith(f"{pool_consumer('any').ack_wait:g} s")
    assert session.HEARTBEAT * 2 <= 10
    assert limit("are collected") == f"{build_log.COLLECT_SECONDS * 1000:g} ms"
    assert limit("one `log_appended`") == f"{build_log.MESSAGE_SIZE // 1024} KiB"
    assert limit("all output") == f"{build_log.BUILD_LOG_SIZE // 1024**2} MiB"
    assert limit("`template_archive`") == f"{CHUNK // 1024} KiB"
    assert limit("template's archive") == f"{MAX_PACKED_BYTES // 1024**2} MiB"
    assert limit("a message") == f"{NEEDED_PAYLOAD // 1024**2} MiB"
    for kind, words in ((events.ErrorText, "`error`"), (events.FactText, "other texts")):
        size, text = int(limit(words).split()[0]) * 1024, TypeAdapter(kind)
        text.validate_python("x" * size, context=True)
        with pytest.raises(ValidationError):
            text.validate_python("x" * (size + 1), context=True)
    assert limit("canceled build") == f"{Limits().cancel.total_seconds():g} s"
