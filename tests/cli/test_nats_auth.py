"""`workspaced nats-auth` prints only public keys."""

from __future__ import annotations

from pathlib import Path

from tests.rigs.processes import run


def test_nats_auth_creates_the_seeds_once_and_prints_only_public_keys(tmp_path: Path) -> None:
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


def test_a_file_without_a_seed_is_named(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/worker.nk").write_text("nothing")

    refused = run("nats-auth", "--data-dir", tmp_path)

    assert refused.returncode == 1
    assert "worker.nk contains no NKey seed" in refused.stderr
    assert refused.stdout == ""
