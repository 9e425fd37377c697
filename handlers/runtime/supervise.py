"""Structured concurrency: tasks that start together, end together, and lose no error.

`run_until_one_ends` is for work that belongs together: when one part ends or fails, the others are
of no use. `running` is for tasks that last as long as a block of code. Both wait until every task
has ended before they return, and log each error that they do not raise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")
CANCEL_AGAIN_AFTER = 3.0
"""Seconds; `asyncio.wait_for` and nats-py can swallow a cancellation that comes at the wrong moment."""

_log = logging.getLogger(__name__)


async def run_until_one_ends(*work: Coroutine[Any, Any, T]) -> T:
    """Run coroutines concurrently until the first one ends, cancel the others, and return its result.

    If several end in the same turn of the event loop, an error wins over a result, and then the
    earlier argument wins. Raises the error of the coroutine that ended first. If the caller is
    cancelled, every coroutine is cancelled. Errors of the other coroutines are logged.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        first = await first_to_end(*tasks)
    finally:
        await cancel_and_wait(*tasks)
    return first.result()


async def first_to_end(*tasks: asyncio.Task[T]) -> asyncio.Task[T]:
    """Wait until one of the tasks ends, and return it; the others keep running.

    If several have ended, a task that failed is returned before one that succeeded, and then the
    earlier argument. Errors of the others that have ended are logged. Never raises a task's error.
    """
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    done = [task for task in tasks if task.done()]
    failed = [task for task in done if _error(task) is not None]
    _log_errors(failed[1:])
    return (failed or done)[0]


async def cancel_and_wait(
    *tasks: asyncio.Task[Any], cancel_again_after: float | None = None
) -> None:
    """Cancel the tasks that are still running, and wait until all of them have ended.

    Logs an error that a task raises after it was cancelled. The result of a task that had ended
    before is left to the code that awaits that task. `cancel_again_after`: seconds after which a task that
    is still running is cancelled again; for code that can swallow a cancellation, such as nats-py
    while it connects.
    """
    cancelled = {task for task in tasks if not task.done()}
    await _cancel(cancelled, cancel_again_after)
    _log_errors(cancelled)


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run coroutines while the block runs, and cancel them when it ends.

    A coroutine that fails cancels the block, and its error is raised in place of the block's. One that
    swallows the cancellation is cancelled again.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
            try:
                yield tasks
            finally:
                await _cancel({task for task in tasks if not task.done()}, CANCEL_AGAIN_AFTER)
    except BaseExceptionGroup as failed:
        first, *others = failed.exceptions
        for error in others:
            _log_error(error)
        raise first from None


async def _cancel(left: set[asyncio.Task[Any]], cancel_again_after: float | None) -> None:
    """Cancel running tasks until all of them have ended, and leave their errors to the caller."""
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=cancel_again_after)


def _log_errors(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        if (error := _error(task)) is not None:
            _log_error(error)


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def _log_error(error: BaseException) -> None:
    _log.warning("a concurrent task failed as well: %r", error, exc_info=error)
