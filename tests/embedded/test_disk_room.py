"""Servers on small disks: streams share the space and never shrink; lack of space is reported."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus import Refused
from bus.jetstream import JetStreamBus, connect
from bus.streams import BOUNDED, IN, LEAST, PRESENCE, STATE, STREAMS, Stream, Tuning
from handlers.access.identities import load_identities, seed_file
from handlers.embedded.disk_space import DiskSpace, check_disk
from handlers.embedded.nats_server import nats_server
from handlers.errors import EmbeddedError
from tests.rigs.processes import run, up

MIB = 1024 * 1024


@contextmanager
def disk(place: Path, mib: int) -> Iterator[Path]:
    """Mount a file system of that size; yield its path."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root with all its rights")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def bounded(tuning: Tuning) -> dict[str, int]:
    return {s.name: s.max_bytes for s in tuning.streams() if s.max_bytes > 0 and not s.in_memory}


def test_streams_share_the_disk_by_their_sizes_and_nothing_else_changes() -> None:
    whole, small = Tuning(), Tuning(disk=BOUNDED // 10)

    assert bounded(whole) == {s.name: s.max_bytes for s in STREAMS if s.name in bounded(whole)}
    assert sum(bounded(whole).values()) == BOUNDED
    assert sum(bounded(small).values()) <= BOUNDED // 10
    assert bounded(small)[IN.name] == IN.max_bytes // 10
    for before, after in zip(whole.streams(), small.streams(), strict=True):
        assert (after.discard, after.max_age, after.max_msg_size) == (
            before.discard,
            before.max_age,
            before.max_msg_size,
        )
    assert Tuning(disk=100 * BOUNDED).streams() == whole.streams()
    assert {s.name: s for s in small.streams()}[PRESENCE.name] == PRESENCE
    assert {s.name: s for s in small.streams()}[STATE.name] == STATE


def test_the_smallest_streams_hold_the_largest_message() -> None:
    for stream in Tuning(disk=LEAST).streams():
        if stream.max_bytes > 0:
            assert stream.max_bytes > 4 * 900 * 1024


@pytest.mark.parametrize("mib", [256, 300, 512, 2048, 5000, 1_000_000])
def test_the_disk_is_divided_and_some_space_remains(mib: int) -> None:
    room = DiskSpace(mib * MIB)
    log = int(room.database_settings()["max_wal_size"].removesuffix("MB")) * MIB

    assert LEAST <= room.streams <= BOUNDED
    assert room.streams + log < mib * MIB
    assert room.streams < room.store < mib * MIB
    usual = {"max_wal_size": "1024MB", "min_wal_size": "80MB"}
    assert (room.database_settings() == usual) == (mib >= 8192)


async def sizes(bus: JetStreamBus, stream: Stream) -> int:
    await bus.ensure_stream(stream)
    answer = await bus.request(f"$JS.API.STREAM.INFO.{stream.name}", b"", timeout=5)
    return int(json.loads(answer.data)["config"]["max_bytes"])


async def test_a_stream_never_shrinks_and_grows_when_there_is_space(tmp_path: Path) -> None:
    """Even if another worker is configured with more or less space than `up`."""
    seeds = load_identities(tmp_path)
    small, whole = Tuning(disk=LEAST).streams()[0], IN
    async with (
        nats_server(tmp_path, seeds, store=256 * MIB) as (url, _, _),
        await connect(url, seed=seed_file(seeds.directory, "operator").read_text()) as bus,
    ):
        with pytest.raises(Refused, match=r"WORKSPACED_IN.*reserves 1024 MiB.*max_file_store"):
            await bus.ensure_stream(whole)
        assert await sizes(bus, small) == small.max_bytes
        assert await sizes(bus, whole) == small.max_bytes

    async with (
        nats_server(tmp_path, seeds, store=4096 * MIB) as (url, _, _),
        await connect(url, seed=seed_file(seeds.directory, "operator").read_text()) as bus,
    ):
        assert await sizes(bus, whole) == whole.max_bytes
        await bus.publish("workspaced.in.tool.c.s", b"kept")

    async with (
        nats_server(tmp_path, seeds, store=256 * MIB) as (url, _, _),
        await connect(url, seed=seed_file(seeds.directory, "operator").read_text()) as bus,
    ):
        assert await sizes(bus, small) == whole.max_bytes
        assert (await bus.ensure_stream(small)).last == 1
        await bus.publish("workspaced.in.tool.c.s", b"taken")


def test_up_runs_on_a_small_disk_and_starts_again(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 512) as place:
        for _ in range(2):
            with up(place / "data") as running:
                assert running.run("chat", "list").returncode == 0
                output = running.process.output()
            assert "new streams are limited to" in output


def test_a_disk_that_is_too_small_is_reported_before_any_file_is_created(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 128) as place:
        refused = run("up", "--data-dir", place / "data")

        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        assert f"{place / 'data'} has 12" in line
        assert "needs 256 MiB there" in line
        assert not (place / "data" / "postgres").exists()
        with pytest.raises(EmbeddedError, match="256 MiB"):
            check_disk(place)
