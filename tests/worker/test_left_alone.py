"""Chats that are left alone leave nothing behind, and nobody is stopped at work; `make left-alone` does it with 1,000."""

from __future__ import annotations

from pathlib import Path

from tests.worker.left_alone import Plan, run


async def test_chats_left_alone_leave_nothing_and_those_with_a_command_are_still_there(
    tmp_path: Path,
) -> None:
    report = await run(Plan(chats=10, lifetime=12.0, retention=3.0), tmp_path)

    assert report.faults == []
    assert len(report.stop_delays) == len(report.delete_delays) == 9
