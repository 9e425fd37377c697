"""`events --all`, and `replay` of a database: it checks logs and rebuilds snapshots."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.cli.template_folders import folder
from tests.rigs.messages import new_id
from tests.rigs.processes import Up, run


@pytest.fixture(scope="module")
def chat(running: Up, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a chat with a long history."""
    pushed = running.data("template", "push", folder(tmp_path_factory.mktemp("quick")))
    chat, args = new_id(), ("--arg", f"template_id={pushed['template_id']}")
    running.data("tool", "create_workspace", "--chat", chat, *args)
    running.data("tool", "stop_workspace", "--chat", chat)
    running.data("tool", "list_templates", "--chat", new_id())
    return chat


def execute(running: Up, statement: str, *args: object) -> None:
    async def done() -> None:
        db = await asyncpg.connect(running.database)
        try:
            await db.execute(statement, *args)
        finally:
            await db.close()

    asyncio.run(done())


def test_exported_logs_replay_without_differences(running: Up, chat: str, tmp_path: Path) -> None:
    exported = running.run("events", "--all")
    alone = running.run("events", chat)
    file = tmp_path / "all.jsonl"
    file.write_text(exported.stdout)
    replayed = run("replay", file)

    entries = [json.loads(line) for line in exported.stdout.split("\n") if line]
    chats = {entry["event"]["subject"] for entry in entries}
    assert exported.returncode == 0, exported.stderr
    assert exported.stderr == f"{len(entries)} entries of {len(chats)} chats\n"
    mine = [entry for entry in entries if entry["event"]["subject"] == chat]
    assert mine == [json.loads(line) for line in alone.stdout.split("\n") if line]
    assert replayed.returncode == 0, replayed.stderr
    assert len(replayed.stdout.splitlines()) == len(chats) >= 2
    (path,) = [line for line in replayed.stdout.splitlines() if line.startswith(chat)]
    assert path.endswith("ready -> stopping -> stopped")


def test_replay_checks_the_database_against_its_logs(running: Up, chat: str) -> None:
    everything = running.run("replay", "--all")
    one = running.run("replay", "--chat", chat)
    by_url = run("replay", "--all", "--database-url", running.database)
    unknown = running.run("replay", "--chat", new_id())

    assert everything.returncode == 0, everything.stderr
    assert everything.stderr.endswith("entries: all agree\n")
    assert everything.stdout == ""
    assert one.returncode == 0
    assert one.stdout.endswith("ready -> stopping -> stopped\n")
    assert by_url.returncode == 0, by_url.stderr
    assert unknown.returncode == 1
    assert "there is no chat" in unknown.stderr


def test_replay_reports_and_rebuilds_a_changed_snapshot(running: Up, chat: str) -> None:
    damage = "update chat set snapshot = jsonb_set(snapshot, '{current,build,number}', '9') where chat_id = $1"
    execute(running, damage, chat)

    verified = running.run("replay", "--all")
    rehearsed = running.run("replay", "--all", "--rebuild", "--dry-run")
    rebuilt = running.run("replay", "--all", "--rebuild")
    again = running.run("replay", "--all")

    words = f"{chat}  snapshot: current.build.number was recorded as 9, folds to 2\n"
    for done in (verified, rehearsed, rebuilt):
        assert words in done.stderr
    assert (verified.returncode, rehearsed.returncode) == (1, 1)
    assert verified.stderr.endswith(": 1 differ\n")
    assert rehearsed.stderr.endswith(": 1 differ, 1 would be rebuilt\n")
    assert rebuilt.stderr.endswith(": 1 differ, 1 rebuilt\n")
    assert rebuilt.returncode == 0
    assert again.returncode == 0
    shown: Any = json.loads(running.run("chat", "show", chat, "--json").stdout)
    assert (shown["state"], shown["build"]["number"]) == ("stopped", 2)


def test_a_log_with_differences_rebuilds_nothing(running: Up, chat: str) -> None:
    execute(running, "update event_log set version = version + 1 where chat_id = $1", chat)
    try:
        refused = running.run("replay", "--chat", chat, "--rebuild")
    finally:
        execute(running, "update event_log set version = version - 1 where chat_id = $1", chat)

    assert refused.returncode == 1
    assert f"{chat}  seq 2: version was recorded as 2, folds to 1\n" in refused.stderr
    assert "1 can't be: their logs don't fold to what they recorded\n" in refused.stderr


def test_entries_of_a_chat_that_are_far_apart_in_a_file_are_reported(
    running: Up, chat: str
) -> None:
    """Replay forgets chats of a file over time; an export has all entries of a chat together."""
    log = running.run("events", chat).stdout.split("\n")
    between = [log[0].replace(chat, new_id()) for _ in range(1001)]

    done = run("replay", "-", stdin="\n".join([log[0], *between, *log[1:]]))

    assert done.returncode == 1
    assert f"{chat}  seq 1: seq was recorded as 2, folds to 1\n" in done.stderr
