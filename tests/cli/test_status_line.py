"""The line that shows what a waiting command waits for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from workspaced import Log, State
from workspaced.models import Build

from handlers.cli.status_line import StatusLine
from tests.rigs.messages import new_id

NOW = datetime(2026, 3, 2, 11, 30, tzinfo=UTC)


def state(name: str, seconds_ago: float, **more: Any) -> State:
    at = NOW - timedelta(seconds=seconds_ago)
    return State(chat_id=new_id(), version=1, state=name, time=at, **more)


def build(begun: datetime | None) -> Build:
    known: Any = {"id": new_id(), "number": 1, "transition": "start", "started_at": NOW}
    return Build(**known, begun_at=begun)


def test_the_line_shows_phase_elapsed_time_limit_and_the_last_line_of_the_log() -> None:
    line = StatusLine("waiting for create_workspace")
    assert line.words(NOW) == "waiting for create_workspace"

    line.heard(state("building", 75, build=build(NOW), deadline=NOW + timedelta(seconds=525)))
    assert line.words(NOW) == "building  1 m 15 s, 8 m 45 s left"
    line.heard(Log(build_id=new_id(), output="compiling\nlinking\n\n"))
    assert line.words(NOW).endswith("left  linking")
    line.heard(state("scripts_running", 2.5, deadline=NOW - timedelta(seconds=1)))
    assert line.words(NOW) == "startup scripts run  2.5 s, the limit has passed"
    line.heard(state("ready", 0))
    assert line.words(NOW) == "waiting for create_workspace: ready"


def test_a_build_that_nobody_has_begun_is_queued() -> None:
    line = StatusLine("")
    line.heard(state("building", 3, build=build(None)))
    assert line.words(NOW) == "queued  3.0 s"


@pytest.mark.parametrize("text", ["\x1b]0;title\x07gone", "\x1b[2Jgone", "[red]gone"])
def test_nothing_in_a_log_acts_on_the_terminal(text: str) -> None:
    line = StatusLine("")
    line.heard(state("building", 3, build=build(NOW)))
    line.heard(Log(build_id=new_id(), output=text))
    assert "gone" in line.words(NOW)
    assert "\x1b" not in line.words(NOW)
    assert "\x07" not in line.words(NOW)
