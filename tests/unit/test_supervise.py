"""Structured concurrency: the first failure is raised, the rest is cancelled, no error is lost."""

from __future__ import annotations

import asyncio
import logging
from typing import Never

import pytest

from handlers.runtime import supervise
from handlers.runtime.supervise import cancel_and_wait, first_to_end, run_until_one_ends, running


class Failure(Exception):
    """An error of a task in a test."""


async def fail(words: str) -> Never:
    raise Failure(words)


class Endless:
    """A coroutine that runs until it is cancelled, and records that it was."""

    def __init__(self) -> None:
        self.started, self.cancelled = asyncio.Event(), False

    async def run(self, *, fails: bool = False, swallows: int = 0) -> None:
        self.started.set()
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallows:
                    swallows -= 1
                    continue
                self.cancelled = True
                if fails:
                    raise Failure("while it was being cancelled") from None
                raise


async def test_the_result_of_the_first_to_end_is_returned_and_the_others_are_cancelled() -> None:
    first, second = Endless(), Endless()

    async def answer() -> None:
        await first.started.wait()
        await second.started.wait()

    assert await run_until_one_ends(first.run(), answer(), second.run()) is None
    assert first.cancelled
    assert second.cancelled


async def test_the_first_failure_is_raised_and_the_others_are_cancelled() -> None:
    other = Endless()

    with pytest.raises(Failure, match="first"):
        await run_until_one_ends(other.run(), fail("first"))

    assert other.cancelled


async def test_an_error_wins_over_a_result_of_the_same_loop_iteration() -> None:
    with pytest.raises(Failure, match="it failed"):
        await run_until_one_ends(asyncio.sleep(0), fail("it failed"), asyncio.sleep(0))


async def test_of_two_errors_that_of_the_earlier_argument_is_raised_and_the_other_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(Failure, match="first"):
        await run_until_one_ends(fail("first"), fail("second"))

    assert "second" in caplog.text
    assert "first" not in caplog.text


async def test_an_error_during_cancellation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    other = Endless()

    with caplog.at_level(logging.WARNING):
        await run_until_one_ends(other.run(fails=True), other.started.wait())

    assert "while it was being cancelled" in caplog.text


async def test_cancelling_the_caller_cancels_every_coroutine() -> None:
    first, second = Endless(), Endless()
    supervisor = asyncio.create_task(run_until_one_ends(first.run(), second.run()))
    await first.started.wait()
    await second.started.wait()

    supervisor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervisor

    assert first.cancelled
    assert second.cancelled


async def test_first_to_end_leaves_the_others_running() -> None:
    other = Endless()
    endless = asyncio.create_task(other.run())
    failing = asyncio.create_task(fail("later"))

    ended = await first_to_end(endless, failing)

    assert ended is failing
    assert not endless.done()
    assert isinstance(failing.exception(), Failure)
    await cancel_and_wait(endless)
    assert other.cancelled


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    stubborn = Endless()
    task = asyncio.create_task(stubborn.run(swallows=2))
    await stubborn.started.wait()

    await cancel_and_wait(task, cancel_again_after=0.01)

    assert stubborn.cancelled


async def test_the_result_of_an_ended_task_is_not_consumed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = asyncio.create_task(fail("for its awaiter"))
    await asyncio.wait([failing])

    with caplog.at_level(logging.WARNING):
        await cancel_and_wait(failing)

    assert caplog.text == ""
    with pytest.raises(Failure, match="for its awaiter"):
        await failing


async def test_an_error_at_the_end_of_the_block_is_raised_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = Endless()

    with caplog.at_level(logging.WARNING), pytest.raises(Failure, match="while it was being"):
        async with running(other.run(fails=True)):
            await other.started.wait()

    assert caplog.text == ""


async def test_tasks_last_as_long_as_the_block_that_runs_them() -> None:
    endless = Endless()

    async with running(endless.run()) as tasks:
        await endless.started.wait()
        assert not tasks[0].done()

    assert endless.cancelled


async def test_a_task_that_fails_ends_the_block_with_its_error() -> None:
    endless = Endless()

    with pytest.raises(Failure, match="in the block"):
        async with running(endless.run(), fail("in the block")):
            await asyncio.Event().wait()

    assert endless.cancelled


async def test_a_block_ends_although_its_task_swallows_a_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervise, "CANCEL_AGAIN_AFTER", 0.01)
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(10), supervise.running(stubborn()):
        await asyncio.sleep(0)

    assert swallowed.is_set()
