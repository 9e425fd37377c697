"""`workspaced nats-auth`: what servers of one's own must know, and nothing that is secret."""

from __future__ import annotations

from pathlib import Path

from tests.rigs.processes import run


def test_it_makes_the_seeds_once_and_prints_none_of_them(tmp_path: Path) -> None:
    first = run("nats-auth", "--data-dir", tmp_path / "new")
    again = run("nats-auth", "--data-dir", tmp_path / "new")

    seeds = {file.stem: file.read_text() for file in (tmp_path / "new/credentials").iterdir()}
    assert (first.returncode, again.returncode) == (0, 0)
    assert first.stdout == again.stdout
    roles = {"operator", "chat-service", "provisioner", "worker", "gateway", "issuer"}
    assert seeds.keys() == roles
    assert not any(seed in first.stdout + first.stderr for seed in seeds.values())
    for role in roles - {"issuer"}:
        assert f"# {role}\n" in first.stdout


def test_a_file_that_holds_no_seed_is_named(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/worker.nk").write_text("nothing")

    refused = run("nats-auth", "--data-dir", tmp_path)

    assert refused.returncode == 1
    assert "worker.nk holds no NKey seed" in refused.stderr
    assert refused.stdout == ""
