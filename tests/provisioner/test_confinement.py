"""The confinement of builds and scripts on this kernel holds for any code."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest

from handlers.cli import main
from handlers.errors import InvalidSettings
from handlers.sandbox import confined_exec, policy
from handlers.sandbox.policy import (
    Confinement,
    Mechanism,
    ResourceLimits,
    choose_confinement,
    require_confinement,
)
from handlers.sandbox.processes import find_marked
from handlers.sandbox.shell import Shell, describe_status
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig

ENV = {"PATH": os.environ["PATH"]}
landlock = pytest.mark.skipif(
    not confined_exec.is_landlock_usable(), reason="this kernel has no Landlock"
)
bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


async def said(prefix: list[str], command: str, cwd: Path) -> tuple[str, str]:
    """Run a command; return its output and how it ended."""
    heard: list[bytes] = []
    shell = Shell(command, cwd=cwd, env=ENV, output=heard.append, prefix=prefix)
    try:
        status = await shell.wait()
    finally:
        shell.end()
    return b"".join(heard).decode(), describe_status(status)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a data directory that contains secrets and two workspaces."""
    for name in ("credentials", "workspaces/mine", "workspaces/other"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/credentials/provisioner.nk").write_text("SU-SECRET")
    (tmp_path / "data/workspaces/other/file").write_text("OTHERS")
    (tmp_path / "beside").write_text("readable\n")
    (tmp_path / "link").symlink_to(tmp_path / "data/credentials")
    return tmp_path


WAYS = [
    pytest.param(Mechanism.LANDLOCK, marks=landlock),
    pytest.param(Mechanism.BUBBLEWRAP, marks=bubblewrap),
]


@pytest.mark.parametrize("way", WAYS)
async def test_a_build_writes_only_to_its_workspace_and_reads_no_credentials(
    place: Path, way: Mechanism
) -> None:
    mine = place / "data/workspaces/mine"
    (place / "data/ca.pem").write_text("authority\n")
    confinement = Confinement(way, private=(place / "data",), readable=(place / "data/ca.pem",))
    commands = (
        f"cat {place}/data/credentials/provisioner.nk",
        f"cat {place}/link/provisioner.nk",
        f"cat /proc/self/root{place}/data/credentials/provisioner.nk",
        "cat ../other/file",
        "echo x > ../other/file",
        "echo x > ../new",
        f"echo x > {place}/beside",
        f"rm -f {place}/beside",
        f"mv {place}/beside .",
        f"ln {place}/data/credentials/provisioner.nk here",
        f"cat /proc/{os.getpid()}/environ",
        f"kill -TERM {os.getpid()}",
        "echo x >> ~/.bashrc",
    )
    script = "\n".join(
        f"if ({words}) 2>/dev/null; then echo 'DID {words}'; fi" for words in commands
    )
    script += f"\ncat {place}/data/ca.pem {place}/beside\nmkdir a && echo x > a/b && mv a/b c && cat c > /dev/null && ls {place}"

    heard, ended = await said(confinement.prefix(mine, step=True), script, mine)

    assert ended == "exited with status 0"
    done = ["authority", "readable", "beside", "data", "link"]
    # Writes to paths that bubblewrap covers succeed, but are discarded with the step.
    covered = ["DID", "echo", "x", ">", "../new"] if way is Mechanism.BUBBLEWRAP else []
    assert heard.split() == covered + done
    assert not (place / "data/workspaces/new").exists()
    assert (place / "beside").read_text() == "readable\n"
    assert (mine / "c").exists()
    assert (place / "data/workspaces/other/file").read_text() == "OTHERS"


@pytest.mark.parametrize("way", WAYS)
async def test_no_step_can_change_kernel_settings(way: Mechanism, place: Path) -> None:
    """Not even as root: the kernel runs the program in core_pattern unconfined."""
    mine = place / "data/workspaces/mine"
    for name in ("sys/kernel/core_pattern", "sysrq-trigger"):
        opened = f"(: >> /proc/{name}) 2> error; echo $?"
        output, _ = await said(Confinement(way).prefix(mine, step=True), opened, mine)
        assert output != "0\n", name


@landlock
async def test_a_stop_step_may_signal_processes_of_an_earlier_step(
    place: Path,
) -> None:
    mine, confinement = place / "data/workspaces/mine", Confinement(Mechanism.LANDLOCK)
    target = await asyncio.create_subprocess_exec("sleep", "1000")
    for signals, expected in ((False, 1), (True, 0)):
        prefix = confinement.prefix(mine, step=True, signals=signals)
        _, ended = await said(prefix, f"kill -TERM {target.pid} 2>/dev/null", mine)
        assert ended == f"exited with status {expected}"

    assert await target.wait() == -signal.SIGTERM


async def test_each_process_has_resource_limits_and_cannot_gain_privileges(tmp_path: Path) -> None:
    limits = ResourceLimits(
        cpu_seconds=7, memory_mib=900, files=200, processes=3000, file_size_mib=1
    )
    prefix = Confinement(limits=limits).prefix(tmp_path, step=True)
    script = "grep -E 'NoNewPrivs|CapEff' /proc/self/status; cat /proc/self/limits"
    heard, _ = await said(prefix, script, tmp_path)
    lines = {" ".join(line.split()[:3]): line.split() for line in heard.splitlines()}

    assert lines["NoNewPrivs: 1"]
    effective = int(next(line.split()[1] for line in heard.splitlines() if "CapEff" in line), 16)
    assert not effective & (1 << 21 | 1 << 16 | 1 << 19)  # CAP_SYS_ADMIN, _MODULE, _PTRACE
    for name, value in (
        ("Max cpu time", "7"),
        ("Max data size", str(900 * 1024 * 1024)),
        ("Max open files", "200"),
        ("Max file size", str(1024 * 1024)),
        ("Max core file", "0"),
    ):
        assert lines[name][-2] == value, lines[name]
    assert lines["Max processes 3000"]


@pytest.mark.parametrize(
    ("limits", "script", "ended"),
    [
        (
            ResourceLimits(file_size_mib=1),
            "exec head -c 2000000 /dev/zero > big",
            "killed by SIGXFSZ",
        ),
        (
            ResourceLimits(files=20),
            "exec 3<. 4<. 5<. 6<. 7<. 8<. 9<. || true; ulimit -n 21",
            "status",
        ),
        (
            ResourceLimits(memory_mib=300),
            "python3 -c 'bytearray(800_000_000)' 2>/dev/null",
            "status 1",
        ),
    ],
    ids=["file", "files", "memory"],
)
async def test_a_process_that_exceeds_a_limit_is_ended_and_the_step_reports_it(
    limits: ResourceLimits, script: str, ended: str, tmp_path: Path
) -> None:
    prefix = Confinement(limits=limits).prefix(tmp_path, step=True)

    _, words = await said(prefix, script, tmp_path)

    assert ended in words
    assert words != "exited with status 0"


async def test_a_confined_command_keeps_its_exit_status(tmp_path: Path) -> None:
    prefix = Confinement().prefix(tmp_path, step=True)
    for script, expected in (
        ("exit 7", "exited with status 7"),
        ("kill -KILL $$", "was killed by SIGKILL"),
        ("yes | head -c 1 > /dev/null", "exited with status 0"),  # SIGPIPE is not ignored
    ):
        assert (await said(prefix, script, tmp_path))[1] == expected


async def test_a_build_does_not_inherit_the_provisioners_environment(
    rig: Rig, provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "WORKSPACED_CREDENTIALS",
        "WORKSPACED_DATABASE_URL",
        "AWS_SECRET_ACCESS_KEY",
        "NATS_NKEY",
        "PGPASSWORD",
        "LD_PRELOAD_X",
        "SSH_AUTH_SOCK",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, f"leaked-{name}")
    script = "env | cut -d= -f1 | sort | tr '\\n' ' '; env | grep -c leaked"
    async with provisioning():
        build = await rig.ask(
            rig.job(version=rig.version({}), build={"start": f"{script} || true"})
        )
        await rig.ended(build)

    names, count = rig.output(build).splitlines()[-1].rsplit(maxsplit=1)
    assert count == "0"
    ours = "AGENT_LAUNCHER BUILD_ID CHAT_ID ERROR_FILE OWNER_NAME TEMPLATE_NAME TRANSITION "
    ours += "WORKSPACE_DIRECTORY WORKSPACE_ID WORKSPACE_NAME"
    found = {name for name in names.split() if name.startswith("WORKSPACED_")}
    assert found == {f"WORKSPACED_{name}" for name in ours.split()}
    allowed = "PATH HOME USER LOGNAME SHELL LANG LC_ALL TZ TMPDIR PWD OLDPWD SHLVL _"
    assert set(names.split()) - found <= set(allowed.split())


async def test_names_and_parameters_are_never_part_of_a_command(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    evil = "$(touch pwned)`touch pwned`; touch pwned #\\n'\""
    job = rig.job(
        version=rig.version({}),
        build={"start": 'printf "%s|" "$WORKSPACED_OWNER_NAME" "$WORKSPACED_WORKSPACE_NAME"; env'},
        agent=[{"name": evil, "env": {"A": evil, "LD_PRELOAD": evil, "WORKSPACED_X": evil}}],
        owner_name=evil,
        workspace_name=evil,
        parameters={"p": evil, "a-b $(id)": evil},
    )
    script = "exit 0"
    async with provisioning(agent_command=("/bin/sh", "-c", script)):
        build = await rig.ask(job)
        ended = await rig.ended(build)

    assert ended["type"] == "workspaced.build_succeeded.v1"
    assert rig.output(build).count(evil) >= 6
    assert not list(tmp_path.rglob("pwned"))


HIDING = """
(exec setsid env -i /bin/sh -c '
  trap "" TERM HUP INT
  (trap "" TERM; exec /bin/sh -c "exec 3> $0; echo there >&3; while :; do sleep 1000; done") &
  exit 0' "{gate}") > /dev/null 2>&1 &
wait
"""
"""A process with another group, session, parent and environment, which ignores SIGTERM."""


async def test_detached_processes_of_a_build_end_with_the_workspace(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    opening = asyncio.create_task(asyncio.to_thread(os.open, gate, os.O_RDONLY))
    async with provisioning():
        job = rig.job(1, version=rig.version({}), build={"start": HIDING.format(gate=gate)})
        started = await rig.ended(await rig.ask(job))
        reader = await opening
        assert os.read(reader, 100) == b"there\n"
        stopped = await rig.ended(await rig.ask(rig.job(2, "stop", version=rig.version({}))))
    with os.fdopen(reader) as held:
        assert held.read() == ""  # end of file: no process can write any more

    assert (started["type"], stopped["type"]) == (
        "workspaced.build_succeeded.v1",
        "workspaced.build_succeeded.v1",
    )
    assert find_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace}") == []


async def test_detached_processes_of_an_agent_end_with_it(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    agent = ("/bin/sh", "-c", f"{HIDING.format(gate=gate)}\nexec sleep 1000")
    opening = asyncio.create_task(asyncio.to_thread(os.open, gate, os.O_RDONLY))
    async with provisioning(agent_command=agent):
        job = rig.job(1, version=rig.version({}), agent=[{"name": "main"}])
        await rig.ended(await rig.ask(job))
        reader = await opening
        assert os.read(reader, 100) == b"there\n"
        await rig.ended(await rig.ask(rig.job(2, "stop", version=rig.version({}))))
    with os.fdopen(reader) as held:
        assert held.read() == ""


async def test_links_that_a_build_leaves_in_workspaceds_folders_are_not_followed(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    """The provisioner is not confined, but follows no links or pipes at paths that it uses."""
    outside = tmp_path / "outside"
    (outside / "agents").mkdir(parents=True)
    (outside / "agents" / "precious").write_text("kept")
    (outside / "error.json").write_text(json.dumps({"error": "SECRET"}))
    steps = (
        f"ln -s {outside}/error.json .workspaced/error.json; exit 1",
        'mkfifo "$WORKSPACED_ERROR_FILE"; exit 1',
        "rm -f .workspaced/template; mkfifo .workspaced/template .workspaced/.template.new",
        f"rm -rf .workspaced; ln -s {outside} .workspaced",
        f"rm -rf .workspaced/agents; ln -s {outside}/agents .workspaced/agents",
        f"ln -s {outside}/agents/precious .workspaced/.template.new",
        "true",
    )
    ends = []
    async with provisioning(agent_command=("/bin/sh", "-c", "exit 0")):
        for number, step in enumerate(steps, 1):
            version = rig.version({"file": str(number)})
            job = rig.job(number, version=version, build={"start": step}, agent=[{"name": "a"}])
            ends.append(await rig.ended(await rig.ask(job)))

    assert "SECRET" not in json.dumps(ends)
    assert [end["type"].split(".")[1] for end in ends[:2]] == ["build_failed"] * 2
    assert [end["type"].split(".")[1] for end in ends[-1:]] == ["build_succeeded"]
    assert sorted(p.name for p in outside.rglob("*")) == ["agents", "error.json", "precious"]
    assert (outside / "agents" / "precious").read_text() == "kept"


def test_paths_beside_private_ones_exclude_them_and_links(place: Path) -> None:
    found = set(
        confined_exec.uncovered_paths([str(place / "data"), str(place / "data/credentials")])
    )

    assert str(place / "beside") in found
    assert not any(path.startswith(str(place / "data")) for path in found)
    assert str(place / "link") not in found
    assert not any(str(place).startswith(f"{path}/") for path in found)
    assert list(confined_exec.uncovered_paths([])) == ["/"]


def test_without_bubblewrap_and_landlock_only_limits_apply_and_one_line_reports_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(confined_exec, "is_landlock_usable", lambda: False)
    with caplog.at_level(logging.INFO):
        chosen = choose_confinement(
            "auto", ResourceLimits(), private=[], environ={"PATH": "/nowhere"}
        )

    assert chosen.mechanism is Mechanism.RLIMITS
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("wanted", "missing"), [("landlock", "no Landlock"), ("bubblewrap", "is not installed")]
)
def test_a_configured_confinement_that_is_unavailable_is_an_error(
    wanted: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined_exec, "is_landlock_usable", lambda: False)
    environ = {"PATH": "/nowhere"}

    with pytest.raises(InvalidSettings, match=f"is {wanted}, .*{missing}.* or auto for the first"):
        choose_confinement(wanted, ResourceLimits(), private=[], environ=environ)
    with pytest.raises(InvalidSettings, match=missing):
        require_confinement(wanted, environ)


def test_a_configured_bubblewrap_that_does_not_work_is_an_error_even_with_landlock(
    tmp_path: Path,
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
    program.chmod(0o755)

    with pytest.raises(InvalidSettings, match="does not work here: no namespaces here"):
        choose_confinement(
            "bubblewrap", ResourceLimits(), private=[], environ={"PATH": str(tmp_path)}
        )


@pytest.mark.parametrize("command", ["up", "provisioner"])
def test_the_provisioner_does_not_start_without_the_configured_confinement(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORKSPACED_CONFINEMENT", "bubblewrap")
    monkeypatch.setenv("PATH", "/nowhere")

    assert main([command, "--data-dir", str(tmp_path / "data")]) == 2
    assert "bubblewrap (bwrap) is not installed" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@landlock
def test_a_data_directory_below_a_shared_directory_is_not_private_and_one_line_reports_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "_TEMPORARY", (str(tmp_path),))
    monkeypatch.setattr(policy.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "data").mkdir()
    with caplog.at_level(logging.INFO):
        below = choose_confinement(
            "landlock", ResourceLimits(), private=[tmp_path / "data"], environ={}
        )
        beside = choose_confinement(
            "landlock", ResourceLimits(), private=[Path(__file__).parent], environ={}
        )

    assert (below.private, beside.private) == ((), (Path(__file__).parent.resolve(),))
    assert [f"can read {tmp_path}" in record.message for record in caplog.records] == [True, False]


def test_bubblewrap_hides_private_paths_and_mounts_the_workspace_over_them() -> None:
    """The arguments only; the tests above show their effect where bubblewrap is installed."""
    confinement = Confinement(
        Mechanism.BUBBLEWRAP,
        private=(Path("/home"), Path(os.devnull)),
        writable=(Path("/tmp"), Path("/home/u/.cache")),
        bubblewrap="/usr/bin/bwrap",
    )
    words = confinement.prefix(Path("/home/u/w"), step=True)
    line = " ".join(words[words.index("/usr/bin/bwrap") :])

    assert line.endswith("--bind /home/u/w /home/u/w --")
    assert "--ro-bind / / --dev /dev --proc /proc --tmpfs /tmp" in line
    assert "--unshare-pid" in line
    assert "--die-with-parent" in line
    assert line.index("--tmpfs /home") < line.index("--bind /home/u/w")
    assert f"--ro-bind {os.devnull} {os.devnull}" in line
