"""Log lines are collected, numbered, limited and masked (contract §3, log_appended)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus import Unavailable
from handlers.publishing.build_log import BuildLog
from statemachine.mask import Mask


class Sent:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.away = 0

    async def __call__(self, subject: str, body: bytes) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("away")
        assert subject == "workspaced.log.c.b"
        self.lines.append(json.loads(body)["data"])

    @property
    def output(self) -> str:
        return "".join(line["output"] for line in self.lines)


@asynccontextmanager
async def logging(
    tmp_path: Path, sent: Sent, limit: int = 10 * 1024 * 1024
) -> AsyncIterator[BuildLog]:
    log = BuildLog(
        "c", "b", "provisioner", "/provisioner/p", sent, ledger=tmp_path / "l", limit=limit
    )
    running = asyncio.create_task(log.run())
    yield log
    await log.drained(5)
    running.cancel()
    log.close()


async def test_lines_are_sent_together_in_messages_of_at_most_32_kib(tmp_path: Path) -> None:
    sent, line = Sent(), "ä" * 99 + "\n"
    async with logging(tmp_path, sent) as log:
        for _ in range(1000):
            log.write("start", "info", line)
        log.write("start", "error", "last")

    assert sent.output == line * 1000 + "last"
    sizes = [len(each["output"].encode()) for each in sent.lines]
    assert max(sizes) <= 32 * 1024
    assert len(sizes) == 8
    assert all(each["output"].endswith("\n") for each in sent.lines[:-1])
    assert [each["sequence"] for each in sent.lines] == list(range(1, 9))
    assert sent.lines[-1]["level"] == "error"


async def test_beyond_the_limit_one_line_reports_that_the_rest_is_omitted(tmp_path: Path) -> None:
    sent = Sent()
    async with logging(tmp_path, sent, limit=100_000) as log:
        for _ in range(30):
            log.write("start", "info", "ü" * 5_000)
        log.write("start", "info", "more")

    *kept, notice = sent.lines
    assert sum(len(each["output"].encode()) for each in kept) == 100_000
    assert notice["level"] == "warn"
    assert notice["output"].count("\n") == 1


async def test_a_killed_sender_never_uses_a_sequence_twice(tmp_path: Path) -> None:
    sent = Sent()
    for _ in range(2):
        log = BuildLog("c", "b", "agent", "/agent/a", sent, ledger=tmp_path / "l", limit=1000)
        running = asyncio.create_task(log.run())
        log.write("startup", "info", "x" * 600)
        await log.drained(5)
        running.cancel()  # without `close`, as when it is killed

    numbers = [each["sequence"] for each in sent.lines]
    assert numbers == sorted(set(numbers))
    assert sent.output.count("x") == 1000


async def test_lines_are_sent_in_order_after_the_bus_was_away(tmp_path: Path) -> None:
    sent = Sent()
    sent.away = 2
    async with logging(tmp_path, sent) as log:
        log.write("start", "info", "a\n")
        log.write("start", "warn", "b\n")

    assert sent.output == "a\nb\n"


@pytest.mark.parametrize("secret", ["four", "line one\nline two", "s3cr3t"])
async def test_secrets_in_output_are_masked(tmp_path: Path, secret: str) -> None:
    sent = Sent()
    async with logging(tmp_path, sent) as log:
        log.mask = Mask([secret])
        heard = log.stream("start")
        for byte in f"<{secret}>".encode():
            heard.feed(bytes([byte]))
        heard.feed(b"")

    assert sent.output == "<***>"
    assert heard.last_lines() == "<***>"


async def test_the_last_lines_of_a_step_are_masked_before_they_are_cut(tmp_path: Path) -> None:
    """Neither the last lines nor a chunk of the log begins or ends with part of a secret."""
    sent, secret = Sent(), "first-half-second-half"
    async with logging(tmp_path, sent) as log:
        log.mask = Mask([secret])
        heard = log.stream("start")
        for shift in range(len(secret)):
            heard.feed(("x" * shift + secret * 400 + "\n").encode())
        heard.feed(b"")

    for text in (sent.output, heard.last_lines(), *(line["output"] for line in sent.lines)):
        assert "half" not in text
        assert "first" not in text
    assert heard.last_lines().endswith("***")


async def test_masking_never_makes_a_message_too_long(tmp_path: Path) -> None:
    sent = Sent()
    async with logging(tmp_path, sent, limit=50_000) as log:
        log.mask = Mask(['ab\n"'])
        heard = log.stream("start")
        heard.feed(b'ab\n"' * 100_000)
        heard.feed(b"")

    *kept, notice = sent.lines
    assert sum(len(each["output"].encode()) for each in kept) == 50_000
    assert max(len(each["output"].encode()) for each in kept) <= 32 * 1024
    assert notice["level"] == "warn"
