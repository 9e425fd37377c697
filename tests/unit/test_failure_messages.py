"""The message of a failed chat says what failed and where to look."""

from __future__ import annotations

import pytest

from statemachine.views import state_changed
from tests.unit.facts import chat, lifecycle, requested, succeeded


@pytest.mark.parametrize(
    ("reached", "words"),
    [("start_error", "failed"), ("start_timeout", "did not end within their own time limit")],
)
def test_failed_startup_scripts_are_explained(reached: str, words: str) -> None:
    workspace = chat(requested(1), succeeded(1), lifecycle(1, reached))

    failure = state_changed(workspace)["failure"]

    assert failure is not None
    assert words in failure["message"]
    assert "log of the build" in failure["message"]
