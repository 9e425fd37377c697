"""`workspaced up` as a process: how it starts and ends, and which data survives."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.template_folders import folder
from tests.rigs.messages import new_id
from tests.rigs.processes import (
    Process,
    Up,
    agents_using,
    get_json,
    kill_processes,
    processes_using,
    run,
    start_up,
    up,
    wait_until_gone,
)

ENDING = 10.0
"""Seconds in which `up` must end, according to the contract."""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Yield a data directory; afterwards kill the processes that use it."""
    directory = tmp_path / "data"
    yield directory
    kill_processes(processes_using(directory))


def test_up_prints_one_line_when_it_is_ready(running: Up) -> None:
    ready = running.ready

    assert ready.keys() == {"ready", "nats", "websocket", "http", "page", "database"}
    assert ready["ready"] is True
    assert ready["nats"].startswith("nats://")
    assert ready["websocket"].startswith("ws://")
    assert ready["http"].startswith("http://")
    assert ready["database"].startswith("postgresql://")


def test_up_serves_its_health(running: Up) -> None:
    assert get_json(f"{running.http}/healthz")[0] == 200
    assert get_json(f"{running.http}/readyz")[0] == 200


def test_only_the_owner_may_read_the_credentials(running: Up) -> None:
    folder = running.directory / "credentials"
    for role in ("operator", "chat-service", "provisioner", "worker", "gateway"):
        file = folder / f"{role}.nk"
        assert file.read_text().startswith("SU")
        assert file.stat().st_mode & 0o077 == 0


def test_logs_are_json_lines_on_stderr_and_stdout_has_only_the_ready_line(data: Path) -> None:
    first = start_up(data, empty=True)

    assert first.process.stop() == 0

    assert first.process.rest == b""
    lines = [line for line in first.process.output().splitlines() if line.startswith("{")]
    assert lines
    for line in map(json.loads, lines):
        assert {"time", "level", "logger", "message"} <= line.keys()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_servers(data: Path, number: signal.Signals) -> None:
    running = start_up(data)
    all_of_it = processes_using(data)

    status = running.process.stop(number, within=ENDING)

    assert status == 0
    assert len(all_of_it) >= 3
    assert wait_until_gone(all_of_it, 0)
    assert processes_using(data) == []


def test_a_signal_before_up_is_ready_stops_it(data: Path) -> None:
    process = Process("up", "--data-dir", data)
    process.wait_for_output("worker is ready")  # earlier, a signal would not end it in order

    assert process.stop(within=ENDING) == 0
    assert processes_using(data) == []


def test_servers_end_with_a_killed_up_and_agents_keep_running(data: Path, tmp_path: Path) -> None:
    running = start_up(data)
    template = running.data("template", "push", folder(tmp_path))["template_id"]
    chat = new_id()
    running.data("tool", "create_workspace", "--chat", chat, "--arg", f"template_id={template}")
    confined = processes_using(data, "handlers.agent")
    agents = agents_using(data)
    servers = [pid for pid in processes_using(data) if pid not in confined]

    running.process.send(signal.SIGKILL)
    running.process.ended()

    assert len(agents) == 1
    assert len(servers) >= 3
    assert wait_until_gone(servers, ENDING)
    assert processes_using(data) == confined

    with up(data) as again:
        assert again.addresses == running.addresses  # the ports stay the same
        answer = again.data("tool", "stop_workspace", "--chat", chat)
        assert answer["stopped"] is True
        assert wait_until_gone(agents, ENDING)


def test_a_second_up_on_the_directory_is_refused_and_the_first_keeps_running(
    running: Up,
) -> None:
    second = run("up", "--data-dir", running.directory, patience=5)

    assert second.returncode == 1
    assert second.stdout == ""
    assert str(running.directory) in second.stderr
    assert "Traceback" not in second.stderr
    assert get_json(f"{running.http}/readyz")[0] == 200
    assert running.run("settings", "list").returncode == 0


def test_chats_and_workspaces_survive_a_restart(data: Path, tmp_path: Path) -> None:
    chat = new_id()
    first = start_up(data)
    template = first.data("template", "push", folder(tmp_path))["template_id"]
    created = first.data(
        "tool", "create_workspace", "--chat", chat, "--arg", f"template_id={template}"
    )
    before = first.run("events", chat).stdout
    agents, confined = agents_using(data), processes_using(data, "handlers.agent")

    assert first.process.stop(within=ENDING) == 0
    assert processes_using(data) == confined
    assert len(agents) == 1
    second = start_up(data)
    after = second.run("events", chat).stdout
    found = second.data(
        "tool", "create_workspace", "--chat", chat, "--arg", f"template_id={template}"
    )
    stopped = second.data("tool", "stop_workspace", "--chat", chat)

    assert created["created"] is True
    assert second.addresses == first.addresses
    assert after.startswith(before)
    assert found["status"] == "already_exists"
    assert stopped["stopped"] is True
    assert wait_until_gone(agents, ENDING)
    assert second.process.stop(within=ENDING) == 0
    assert "NATS lost" not in second.process.output()


def test_chosen_ports_are_kept(data: Path) -> None:
    with up(data) as first:
        nats_port = int(first.nats.rpartition(":")[2])
        http_port = int(first.http.rpartition(":")[2])
    chosen = (str(nats_port + 1), str(http_port + 1))

    with up(data, "--nats-port", chosen[0], "--http-port", chosen[1]) as second:
        assert second.nats.endswith(f":{chosen[0]}")
        assert second.http.endswith(f":{chosen[1]}")
    with up(data) as third:
        assert third.addresses == second.addresses


def test_a_taken_port_is_named(running: Up, data: Path) -> None:
    port = running.nats.rpartition(":")[2]

    refused = run("up", "--data-dir", data, "--nats-port", port)

    assert refused.returncode == 1
    assert port in refused.stderr
    assert "Traceback" not in refused.stderr


def test_up_uses_the_servers_that_are_given(running: Up, data: Path) -> None:
    env = {
        "WORKSPACED_NATS_URL": running.nats,
        "WORKSPACED_DATABASE_URL": running.ready["database"],
        "WORKSPACED_CREDENTIALS": str(running.directory / "credentials"),
    }
    with up(data, env=env) as guest:
        assert guest.nats == running.nats
        assert guest.ready["database"] == running.ready["database"]
        assert processes_using(data) == [guest.process.pid]
        assert get_json(f"{guest.http}/readyz")[0] == 200
        assert guest.run("settings", "list").returncode == 0


def test_an_unusable_data_directory_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    refused = run("up", "--data-dir", file / "data")

    assert refused.returncode == 1
    assert str(file) in refused.stderr
    assert "Traceback" not in refused.stderr


def test_up_ends_when_a_server_ends(data: Path) -> None:
    running = start_up(data)
    (nats,) = processes_using(data, "nats-server")

    os.kill(nats, signal.SIGKILL)

    assert running.process.ended(ENDING) == 1
    assert processes_using(data) == []
    assert "nats-server" in running.process.output()
