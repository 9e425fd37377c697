"""No standard stream, home directory, file, limit or variable of a process causes a traceback."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from handlers.cli.command_table import command_parser
from handlers.cli.standard_streams import prepare
from handlers.settings import Settings, read_settings, unknown_variables
from tests.cli.template_folders import QUICK, folder
from tests.rigs.processes import ROOT, TIMEOUT, Up, environment, run, up

WORKSPACED = [sys.executable, "-m", "handlers"]
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
"""Drops the capabilities with which root ignores file permissions."""
needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="there is no setpriv"
)


def shell(words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which $W is `workspaced`."""
    return subprocess.run(
        ["/bin/sh", "-c", words],
        cwd=ROOT,
        env=environment({"W": " ".join(WORKSPACED), **more}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def started(
    command: Sequence[str | Path], **env: str
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start a command without stderr, and yield its process and stdout. Kill it at the end."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def assert_one_line_error(
    done: subprocess.CompletedProcess[str], *words: str | Path, status: int = 1
) -> None:
    """Assert that a command failed with one line on stderr that contains these words."""
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (status, "")
    assert line.startswith("workspaced: ")
    assert [word for word in map(str, words) if word not in line] == []


# Standard streams


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_up_runs_and_stops_with_closed_or_full_standard_streams(
    closed: str, tmp_path: Path
) -> None:
    """No socket gets the number of a standard stream, even if stderr accepts no output."""
    command = ["/bin/sh", "-c", f'exec $W up --data-dir "$0" {closed}', tmp_path / "data"]
    with started(command, W=" ".join(WORKSPACED)) as (process, stdout):
        if ">&-" in closed.split():
            wait_for_file(tmp_path / "data" / "servers.json")
        else:
            assert json.loads(stdout.readline())["ready"] is True
        listed = run("chat", "list", "--data-dir", tmp_path / "data")
        deadline = time.monotonic() + TIMEOUT
        while "nobody serves" in listed.stderr and time.monotonic() < deadline:  # still starting
            listed = run("chat", "list", "--data-dir", tmp_path / "data")
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)

    assert listed.returncode == 0, listed.stderr
    assert status == 0


def test_a_system_without_dev_null_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.devnull", str(tmp_path / "null"))

    with pytest.raises(SystemExit, match=r"workspaced: .*null: No such file"):
        prepare()


BLOCK_SIGNALS = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_up_runs_and_stops_though_its_parent_blocked_every_signal(tmp_path: Path) -> None:
    """Blocked signals are inherited, by PostgreSQL and nats-server too."""
    command = [sys.executable, "-c", BLOCK_SIGNALS, *WORKSPACED, "up", "--data-dir"]
    with started([*command, tmp_path / "data"]) as (process, stdout):
        assert json.loads(stdout.readline())["ready"] is True
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)

    assert status == 0


WAIT = """
import asyncio, sys
from pathlib import Path
from typing import IO
from handlers.embedded.inotify import changes

async def main(path):
    path.parent.mkdir(exist_ok=True)
    with changes(path.parent) as changed:
        while not path.exists():
            changed.clear()
            await changed.wait()

asyncio.run(main(Path(sys.argv[1])))
"""


def wait_for_file(path: Path) -> None:
    """Wait until the file exists."""
    subprocess.run([sys.executable, "-c", WAIT, path], cwd=ROOT, timeout=60, check=True)


@pytest.mark.parametrize(
    "more",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda more: ",".join(more.values()),
)
def test_characters_that_a_stream_cannot_encode_are_escaped(
    running: Up, more: dict[str, str], tmp_path: Path
) -> None:
    name = "Łukasz 𝄞 é"
    text = f'name = "own"\npool = "nowhere"\ndisplay_name = "{name}"\n[build]\nstart = "true"\n'
    pushed = running.run("template", "push", folder(tmp_path, text))
    assert pushed.returncode == 0, pushed.stderr
    words = ("--data-dir", running.directory)

    listed = run("template", "list", *words, env=more)
    refused = run("replay", f"/nowhere/{name}", env=more)

    assert listed.returncode == 0, listed.stderr
    names = [json.loads(line)["display_name"] for line in listed.stdout.splitlines()]
    assert name in names
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "/nowhere/" in refused.stderr


def test_a_workspace_is_made_in_any_locale_and_below_a_directory_that_is_not_utf8(
    tmp_path: Path,
) -> None:
    data = Path(os.fsdecode(bytes(tmp_path) + b"/d\xc3\xa4t\xff"))
    no_utf8 = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    template = folder(tmp_path, QUICK.replace('"hello"', '"λ and é"'))
    with up(data, env=no_utf8) as running:
        pushed = running.data("template", "push", template)
        created = running.run(
            *("tool", "create_workspace", "--chat", "new"),
            *("--arg", f"template_id={pushed['template_id']}", "--arg", "parameters.greeting=λ"),
        )

    assert created.returncode == 0, created.stderr
    assert "λ from the build" in created.stderr
    assert "Traceback" not in running.process.output()


# Flags and variables


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (["chat", "list", "--data-dir", ""], ["chat", "list"]),
        (["chat", "list", "--data-dir="], ["chat", "list"]),
        (["events", "--all", "--database-url", ""], ["events", "--all"]),
        (["replay", "--all", "--database-url="], ["replay", "--all"]),
        (["migrate", "--data", ""], ["migrate"]),
        (["up", "--nats-port", "", "--http-host", ""], ["up"]),
        (["up", "--nats-name", "", "--tls-key", "", "--credentials", ""], ["up"]),
        (["chat", "list", "--json", "--owner", ""], ["chat", "list", "--json"]),
    ],
    ids=" ".join,
)
def test_an_empty_flag_counts_as_absent(given: Sequence[str], same: Sequence[str]) -> None:
    assert vars(command_parser().parse_args(given)) == vars(command_parser().parse_args(same))


def test_an_empty_flag_that_limits_a_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Without its limit, the key could do more than its user meant."""
    with pytest.raises(SystemExit):
        command_parser().parse_args(["credentials", "issue", "--role", "operator", "--chat", ""])

    assert "argument --chat: its value is empty" in capsys.readouterr().err


def test_an_empty_required_flag_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_parser().parse_args(["token", "issue", "--role", ""])

    assert "required: --role" in capsys.readouterr().err


def test_values_that_look_empty_or_like_flags_are_kept(tmp_path: Path) -> None:
    flags = command_parser().parse_args(
        ["tool", "create_workspace", "--chat=new", "--arg", "name=", "--arg", "parameters.x=--y"]
    )

    assert flags.arg == [("name", ""), ("parameters.x", "--y")]
    assert command_parser().parse_args(["events", "--all", "--data-dir", str(tmp_path)]).all is True


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_setting_is_its_default_as_flag_and_as_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = read_settings()
    monkeypatch.setenv(f"WORKSPACED_{name.upper()}", "")

    assert read_settings({name: ""}) == usual


def test_no_database_is_guessed_when_the_url_is_empty(tmp_path: Path) -> None:
    for words in (["events", "--all"], ["replay", "--all"], ["migrate"], ["settings", "list"]):
        for empty in (["--database-url", ""], ["--database-url="]):
            done = run(*words, *empty, "--data-dir", tmp_path, env={"WORKSPACED_DATABASE_URL": ""})
            assert_one_line_error(done, f"no workspaced runs on {tmp_path}")


@pytest.mark.parametrize("words", [["template", "push", ""], ["replay", ""], ["agent", ""]])
def test_an_empty_path_is_not_the_current_directory(words: list[str]) -> None:
    done = run(*words)

    assert done.returncode == 2
    assert "it is empty: name a path" in done.stderr


def test_unknown_variables_are_reported_with_the_nearest_known_one() -> None:
    nothing = "is not a setting of workspaced and has no effect"
    known = {f"WORKSPACED_{name.upper()}": "1" for name in Settings.model_fields}
    found = unknown_variables(
        known | {"WORKSPACED_BUILD_TIMEOU": "1", "WORKSPACED_ZZZ": "1", "WORKSPACE": "1"}
    )

    assert found == [
        f"the variable WORKSPACED_BUILD_TIMEOU {nothing}; did you mean WORKSPACED_BUILD_TIMEOUT?",
        f"the variable WORKSPACED_ZZZ {nothing}",
    ]


def test_a_warning_for_each_unknown_variable_goes_to_stderr(tmp_path: Path) -> None:
    names = {"WORKSPACED_NATS_URI": "x", "WORKSPACED_DATADIR": "x", "WORKSPACED_PARAM_X": "x"}
    done = run("chat", "list", "--data-dir", tmp_path, env=names)

    *warnings, words = done.stderr.splitlines()
    assert "no workspaced runs" in words
    told = [json.loads(line)["message"].split()[2] for line in warnings]
    assert told == ["WORKSPACED_DATADIR", "WORKSPACED_NATS_URI"]


def test_up_runs_without_docstrings_and_with_a_file_for_tls_keys_that_cannot_be_written(
    tmp_path: Path,
) -> None:
    """`PYTHONOPTIMIZE=2` removes docstrings; Python opens SSLKEYLOGFILE for each TLS context."""
    path = tmp_path / "nowhere" / "keys"
    more = {"PYTHONOPTIMIZE": "2", "SSLKEYLOGFILE": str(path)}
    with up(tmp_path / "data", env=more) as running:
        listed = run("chat", "list", "--data-dir", tmp_path / "data", env=more)

    assert listed.returncode == 0, listed.stderr
    assert f"SSLKEYLOGFILE is ignored: {path} can't be written" in running.process.output()


# Home and files


@pytest.mark.parametrize(
    ("home", "words"),
    [("", ["--data-dir", "~nosuchuser/x"]), ("/nowhere", ["--data-dir", "~nosuchuser"])],
)
def test_an_unknown_home_directory_is_an_error(home: str, words: list[str]) -> None:
    done = run("chat", "list", *words, env={"HOME": home})

    assert_one_line_error(done, "~nosuchuser", "WORKSPACED_DATA_DIR", "HOME", status=2)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
@pytest.mark.parametrize("home", ["-u HOME", "HOME="])
def test_without_passwd_entry_and_home_the_error_says_what_to_do(home: str) -> None:
    as_nobody = "unshare -U --map-user=12345"
    if shell(f"{as_nobody} true").returncode:
        pytest.skip("this machine refuses user namespaces")

    assert_one_line_error(
        shell(f"{as_nobody} env {home} $W chat list"), "no workspaced runs on /.local/share"
    )
    assert_one_line_error(
        shell(f"{as_nobody} env {home} $W chat list --data-dir '~/x'"), "set HOME", status=2
    )


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Return the path of a folder with paths that fail in different ways."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "read-only").mkdir(mode=0o500)
    return tmp_path


COMMANDS = [
    "up --data-dir",
    "chat list --data-dir",
    "migrate --data-dir",
    "template push",
    "replay",
    "agent",
    "chat list --nats-url nats://127.0.0.1:1 --credentials",
]


@needs_setpriv
@pytest.mark.parametrize("command", COMMANDS)
def test_errors_of_the_file_system_are_one_line_with_the_path(command: str, places: Path) -> None:
    too_long, failed = "x" * 300, list[str]()
    for name in ("loop/x", "loop", "file/x", "closed/x", "closed", too_long):
        path = places / name
        done = run(*command.split(), path, prefix=WITHOUT_CAPABILITIES)
        last = done.stderr.splitlines()[-1] if done.stderr else ""
        named = any(str(one) in last for one in (path, path.parent))
        lines = len(done.stderr.splitlines())
        if done.returncode != 1 or "Traceback" in done.stderr or not named or lines > 1:
            failed.append(f"{name}: {done.returncode} {done.stderr[-400:]}")

    assert failed == []


@needs_setpriv
def test_an_unwritable_directory_is_named(places: Path) -> None:
    for words in (["up", "--data-dir"], ["nats-auth", "--data-dir"]):
        done = run(*words, places / "read-only", prefix=WITHOUT_CAPABILITIES)
        assert_one_line_error(done, places / "read-only")


def test_a_file_size_limit_is_reported_with_advice() -> None:
    assert_one_line_error(
        shell("ulimit -f 0; trap '' XFSZ; $W nats-auth --data-dir $(mktemp -d)"),
        "credentials",
        "File too large",
    )


# Descriptors


def test_servers_raise_their_limit_of_open_files_and_commands_they_run_get_the_old_one(
    tmp_path: Path,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        "import resource, sys; from handlers.sandbox.processes import raise_file_limit\n"
        "from handlers.sandbox.policy import Confinement; from pathlib import Path\n"
        "raise_file_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)\n"
        "import os; words = Confinement().prefix(Path('.'), step=True)\n"
        "os.execv(words[0], [*words, '/bin/sh', '-c', 'ulimit -S -n; ulimit -H -n'])"
    )
    done = shell(f'ulimit -S -n 128; {sys.executable} -c "$CODE"', CODE=code)

    raised, soft, same = done.stdout.split()
    expected = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    assert int(raised) == expected
    assert soft == "128"
    assert same == "unlimited" or int(same) == hard


def test_up_raises_its_limit_of_open_files(running: Up) -> None:
    limits = Path(f"/proc/{running.process.pid}/limits").read_text().splitlines()
    (line,) = [line for line in limits if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]

    assert soft == hard or int(soft) == 1 << 20


def test_running_out_of_file_descriptors_is_reported_with_advice(tmp_path: Path) -> None:
    done = shell(f"ulimit -n 8; $W up --data-dir {tmp_path / 'data'}")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ulimit -n" in done.stderr


# Networks


@pytest.mark.parametrize(
    "hosts",
    [
        "",
        "--nats-host [::1] --websocket-host ::1 --http-host localhost",
    ],
)
def test_up_runs_on_a_machine_with_only_ipv6(hosts: str, tmp_path: Path) -> None:
    """In a network whose loopback has no 127.0.0.1; other commands find the address of `up`."""
    network = "unshare -n" if os.geteuid() == 0 else "unshare -rn"
    if shell(f"{network} ip link set lo up").returncode:
        pytest.skip("this machine refuses network namespaces, or has no `ip`")
    data = tmp_path / "data"
    steps = (
        "ip link set lo up; ip addr del 127.0.0.1/8 dev lo; "
        f"$W up --data-dir {data} {hosts} >{tmp_path / 'ready'} 2>{tmp_path / 'said'} & "
        f'timeout 40 {sys.executable} -c "$WAIT" {data / "servers.json"}; '
        f"for _ in 1 2 3; do $W chat list --data-dir {data} && break; done; "
        "kill $!; wait $!; echo status $?"
    )
    done = shell(f"{network} /bin/sh -c '{steps}'", WAIT=WAIT)

    assert "status 0" in done.stdout, done.stderr + (tmp_path / "said").read_text()
    ready = json.loads((tmp_path / "ready").read_text())
    assert "[::1]" in ready["nats"]
    assert "[::1]" in ready["http"] or "localhost" in ready["http"]
