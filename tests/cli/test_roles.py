"""`worker`, `gateway`, `provisioner` and `agent` as separate processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli.template_folders import QUICK, folder
from tests.rigs.messages import new_id
from tests.rigs.processes import Process, Up, agents_using, run, wait_until_gone


@pytest.mark.parametrize("role", ["worker", "gateway"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_role_uses_the_running_up_and_stops_on_a_signal(
    running: Up, role: str, number: signal.Signals
) -> None:
    process = Process(role, "--data-dir", running.directory)
    process.wait_for_output(f"{role} is ready")

    assert process.stop(number) == 0
    assert process.rest == b""


def test_a_provisioner_serves_its_own_pool(running: Up, tmp_path: Path) -> None:
    text = QUICK.replace("quick", "apart").replace("local", "apart")
    pushed = running.data("template", "push", folder(tmp_path, text))
    home = ("--data-dir", tmp_path / "home", "--nats-url", running.nats)
    credential = ("--credentials", running.seed_file("provisioner"))
    chat = new_id()
    process = Process("provisioner", "--name", "apart", "--pool", "apart", *home, *credential)
    try:
        created = running.data(
            "tool",
            "create_workspace",
            "--chat",
            chat,
            "--arg",
            f"template_id={pushed['template_id']}",
        )
        agents = agents_using(tmp_path / "home")
        running.data("tool", "stop_workspace", "--chat", chat)
    finally:
        status = process.stop(within=10)

    assert created["created"] is True
    assert status == 0
    assert len(agents) == 1
    assert wait_until_gone(agents, 10)


def test_a_provisioner_logs_once_that_it_waits_for_a_template_of_its_pool(
    running: Up, tmp_path: Path
) -> None:
    place = ("--data-dir", tmp_path / "home", "--nats-url", running.nats)
    credential = ("--credentials", running.seed_file("provisioner"))
    process = Process("provisioner", "--name", "late", "--pool", "late", *place, *credential)
    try:
        process.wait_for_output("no template of pool late has been pushed yet; waiting")
        text = QUICK.replace("quick", "late").replace("local", "late")
        pushed = running.data("template", "push", folder(tmp_path, text))
        argument = f"template_id={pushed['template_id']}"
        chat = new_id()
        created = running.data("tool", "create_workspace", "--chat", chat, "--arg", argument)
        running.data("tool", "stop_workspace", "--chat", chat)
    finally:
        status = process.stop(within=10)

    assert created["created"] is True
    assert status == 0
    assert process.output().count("no template of pool late") == 1


def test_a_provisioner_with_a_key_for_another_pool_ends_with_an_error(
    running: Up, tmp_path: Path
) -> None:
    file = tmp_path / "key.nk"
    bound = ("--role", "provisioner", "--pool", "gpu", "--name", "far", "--out", file)
    running.data("credentials", "issue", *bound)
    place = ("--data-dir", tmp_path / "home", "--nats-url", running.nats, "--credentials", file)

    refused = run("provisioner", "--name", "far", "--pool", "cpu", *place)
    own = Process("provisioner", "--name", "far", "--pool", "gpu", *place)
    try:
        own.wait_for_output("no template of pool gpu has been pushed yet; waiting")
    finally:
        status = own.stop(within=10)

    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert "this key may not take jobs of pool cpu: it is valid for another pool" in last
    assert "Traceback" not in refused.stderr
    assert status == 0


def test_issuing_a_key_for_a_name_that_is_bound_to_another_pool_fails_with_status_1(
    running: Up,
) -> None:
    issue = ("credentials", "issue", "--role", "provisioner", "--name", "bound")
    running.data(*issue, "--pool", "gpu")

    taken = running.run(*issue, "--pool", "cpu")
    misspelled = running.run(*issue, "--pool", "no.pool")

    assert taken.returncode == 1
    assert "--name: 'bound' belongs to a provisioner of pool gpu for ever" in taken.stderr
    assert misspelled.returncode == 2
    assert "--pool: use letters" in misspelled.stderr


def test_a_second_provisioner_of_a_directory_is_an_error(running: Up) -> None:
    refused = running.run("provisioner")

    root = running.directory / "provisioner" / "local"
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        f"workspaced: {root} is in use by another provisioner (perhaps that of `workspaced up`): stop it, or choose "
        "another --name or --data-dir"
    )
    assert "Traceback" not in refused.stderr


def test_a_role_with_the_key_of_another_role_is_refused(running: Up, tmp_path: Path) -> None:
    place = ("--nats-url", running.nats, "--database-url", running.database)
    refused = run("worker", *place, "--credentials", running.seed_file("chat-service"))
    unknown = tmp_path / "unknown.nk"
    unknown.write_text("SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY")
    stranger = run("gateway", *place, "--credentials", unknown)
    nothing = tmp_path / "nothing.nk"
    nothing.write_text("nothing")
    no_seed = run("gateway", *place, "--credentials", nothing)

    for done in (refused, stranger, no_seed):
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    assert "permission" in refused.stderr.lower()


def waiting_message(role: str, running: Up, data: Path, **servers: str) -> str:
    """Start a role that can't reach a server; return the warning that it logs once."""
    env = {"WORKSPACED_NATS_URL": running.nats, "WORKSPACED_DATABASE_URL": running.database}
    seed = ("--credentials", running.seed_file(role))
    process = Process(role, "--data-dir", data, *seed, env=env | servers)
    try:
        process.wait_for_output("trying again")
    finally:
        status = process.stop()

    (line,) = [json.loads(one) for one in process.output().splitlines() if "trying again" in one]
    assert line["level"] == "warning"
    assert "secret" not in process.output()
    assert status != 1
    return str(line["message"])


@pytest.mark.parametrize("role", ["worker", "gateway", "provisioner"])
def test_a_role_waits_for_nats_and_logs_that(role: str, running: Up, tmp_path: Path) -> None:
    away = {"WORKSPACED_NATS_URL": "nats://ann:secret@127.0.0.1:1"}

    message = waiting_message(role, running, tmp_path, **away)

    assert message.startswith("no NATS at nats://ann:***@127.0.0.1:1: ")


@pytest.mark.parametrize("role", ["worker", "gateway"])
def test_a_role_waits_for_the_database_and_logs_that(
    role: str, running: Up, tmp_path: Path
) -> None:
    away = {"WORKSPACED_DATABASE_URL": "postgresql://ann:secret@127.0.0.1:1/db"}

    message = waiting_message(role, running, tmp_path, **away)

    assert message.startswith("can't open the database: ")
    assert "postgresql://ann:***@127.0.0.1:1/db" in message


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?sslmode=require&channel_binding=require", "channel_binding=require"),
        ("?hostaddr=127.0.0.1", "hostaddr"),
        ("?sslmode=sometimes", "sslmode"),
    ],
)
@pytest.mark.parametrize("command", ["worker", "gateway", "migrate", "settings"])
def test_an_invalid_url_is_a_one_line_error(
    command: str, query: str, words: str, running: Up, tmp_path: Path
) -> None:
    role = command if command in ("worker", "gateway") else "operator"
    more = ("list",) if command == "settings" else ()
    env = {
        "WORKSPACED_NATS_URL": running.nats,
        "WORKSPACED_DATABASE_URL": f"postgresql://ann:secret@127.0.0.1:1/db{query}",
        "WORKSPACED_CREDENTIALS": str(running.seed_file(role)),
    }
    done = run(command, *more, "--data-dir", tmp_path, env=env)

    assert done.returncode == 1, done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_an_agent_without_its_folder_is_an_error(tmp_path: Path) -> None:
    done = run("agent", tmp_path / "config.json")

    assert done.returncode == 1
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr
