"""A password in a URL is sent to its server and shown nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bus.connect import anonymous, redacted
from handlers.cli import main
from handlers.settings import Settings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://ada:secret@bus:4222", "nats://ada:***@bus:4222"),
        ("nats://secret@bus", "nats://***@bus"),
        ("tls://a:secret@x,tls://b:secret@y", "tls://a:***@x,tls://b:***@y"),
        ("postgresql://ada:secret@db/x", "postgresql://ada:***@db/x"),
        ("postgresql://postgres@/x?host=/run", "postgresql://postgres@/x?host=/run"),
        ("postgresql://ada:sec@ret/with#all@db/x", "postgresql://ada:***@db/x"),
        ("postgresql://ada:sec,ret@db,other/x", "postgresql://ada:***@db,other/x"),
        (
            "postgresql://db/x?user=ada&password=secret&port=1",
            "postgresql://db/x?user=ada&password=***&port=1",
        ),
        ("no way to nats://ada:secret@bus: refused", "no way to nats://ada:***@bus: refused"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_an_agent_gets_the_url_of_nats_without_a_password() -> None:
    assert anonymous("nats://ada:secret@x:1,nats://b@y") == "nats://x:1,nats://y"


def test_settings_show_no_url() -> None:
    settings = Settings(nats_url="nats://a:secret@x", database_url="postgresql://a:secret@x/y")

    assert "secret" not in repr(settings)


@pytest.mark.parametrize("password", ["se#cret", "se/cret", "se:cret", "se?cret"])
def test_an_unescaped_password_is_hidden_entirely(
    password: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"postgresql://ada:{password}@127.0.0.1:1/x"

    status = main(["settings", "list", "--data-dir", str(tmp_path), "--database-url", url])

    output = capsys.readouterr().err
    assert status == 1
    assert "cret" not in output
    assert "'se'" not in output


@pytest.mark.parametrize("password", ["secret", "se,cret", "se cret", "se@cret"])
@pytest.mark.parametrize("command", ["replay --all", "migrate"])
def test_an_unreachable_database_is_named_without_its_password(
    command: str, password: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"postgresql://ada:{password}@127.0.0.1:1/x"
    place = ["--data-dir", str(tmp_path), "--database-url", url]

    status = main([*command.split(), *place])

    output = capsys.readouterr().err
    assert status == 1
    assert "can't open the database: " in output
    assert output.endswith(" (postgresql://ada:***@127.0.0.1:1/x)\n")
    assert "cret" not in output


@pytest.mark.parametrize("password", ["secret", "se,cret", "se cret", "se@cret"])
def test_a_waiting_role_names_its_database_without_its_password(
    password: str, tmp_path: Path
) -> None:
    url = f"postgresql://ada:{password}@127.0.0.1:1/x"
    words = ["worker", "--data-dir", tmp_path, "--database-url", url]

    with subprocess.Popen(
        [sys.executable, "-m", "handlers", *words, "--nats-url", "nats://127.0.0.1:1"],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        output = worker.stderr.readline() if worker.stderr else ""
        worker.kill()

    assert "can't open the database: " in output
    assert "(postgresql://ada:***@127.0.0.1:1/x)" in output
    assert "cret" not in output
