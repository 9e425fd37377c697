"""The report about event logs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from handlers.cli.commands.report import LogFigures, page
from tests.rigs.messages import new_id
from tests.rigs.processes import run

START = datetime(2026, 3, 2, 11, 0, tzinfo=UTC)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></svg><svg onload=alert(1)>",
    "\x1b]0;x\x07 javascript:alert(1)",
    "&lt;b&gt;' onmouseover='x",
)


def log(
    template: str = "python", *, ends: str = "build_succeeded", took: float = 90, **data: Any
) -> list[dict[str, Any]]:
    """Return the log of a chat with one start build."""
    chat, build = new_id(), {"build_id": new_id(), "build_number": 1, "transition": "start"}
    failed = ends != "build_succeeded"
    steps = [
        (0.0, "build_requested", "none", "building", {"template": {"name": template}}),
        (2.0, "build_started", "building", "building", {}),
        (2.0 + took, ends, "building", "failed" if failed else "agent_connecting", data),
    ]
    if not failed:
        steps += [
            (5.0 + took, "agent_connected", "agent_connecting", "scripts_running", {}),
            (15.0 + took, "agent_lifecycle", "scripts_running", "ready", {"lifecycle": "ready"}),
        ]
    return [
        {
            "seq": number,
            "event": {"type": f"workspaced.{name}.v1", "subject": chat, "data": {**build, **more}},
            "outcome": "moved",
            "state_before": before,
            "state_after": after,
            "version": number,
            "at": (START + timedelta(seconds=seconds)).isoformat(),
        }
        for number, (seconds, name, before, after, more) in enumerate(steps, 1)
    ]


def figures_of(*logs: list[dict[str, Any]]) -> LogFigures:
    figures = LogFigures()
    for entry in chain(*logs):
        figures.take(entry)
    return figures


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")


def test_the_figures_are_those_of_the_log() -> None:
    figures = figures_of(
        log(took=90), log(took=30), log(ends="build_failed", error="no", error_code="DISK")
    )

    assert (figures.builds, figures.failed, len(figures.chats)) == (3, 1, 3)
    assert sorted(figures.phases["building"]["python"].seconds) == [30, 90]
    assert list(figures.phases["queued"]["python"].seconds) == [2, 2, 2]
    assert list(figures.phases["agent"]["python"].seconds) == [3, 3]
    assert list(figures.phases["scripts"]["python"].seconds) == [10, 10]
    assert figures.reasons == {"the build failed: DISK": 1}
    assert [build.seconds for build in sorted(figures.slowest, reverse=True)] == [90, 30]


def test_the_page_shows_the_figures_and_loads_nothing() -> None:
    text = page(figures_of(log(), log(ends="build_failed")), START)
    tags = Tags()
    tags.feed(text)

    assert "1 m 30 s" in text
    assert "the build failed" in text
    assert tags.tags.isdisjoint(("script", "link", "img", "iframe", "object", "a"))
    assert tags.attributes.keys().isdisjoint(("src", "href", "xlink:href", "onload"))
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_log_becomes_markup(text: str) -> None:
    plain, hostile = Tags(), Tags()
    plain.feed(page(figures_of(log(), log(ends="build_failed", error_code="X")), START))
    shown = page(figures_of(log(text), log(text, ends="build_failed", error_code=text)), START)
    hostile.feed(shown)

    assert hostile.tags == plain.tags
    assert hostile.attributes.keys() == plain.attributes.keys()
    assert "\x1b" not in shown


def test_an_empty_log_makes_a_page_without_plots() -> None:
    assert "No chat failed." in page(LogFigures(), START)


def test_the_command_writes_the_file_that_it_is_told(tmp_path: Path) -> None:
    source, out = tmp_path / "log.jsonl", tmp_path / "out.html"
    source.write_text("".join(json.dumps(entry) + "\n" for entry in log()))

    done = run("report", source, "--out", out)
    wrong = run("report", "-", "--out", out, stdin="{}\n")
    missing = run("report", tmp_path / "none", "--out", out)

    assert json.loads(done.stdout) == {"file": str(out), "entries": 5, "builds": 1}
    assert out.read_text().startswith("<!doctype html>")
    assert wrong.returncode == missing.returncode == 1
    assert "line 1: not an entry of an event log" in wrong.stderr
    assert "No such file" in missing.stderr
