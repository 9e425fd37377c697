"""Logging to stderr: plain lines on a terminal, JSON lines otherwise.

A record is one line, unless it has the attribute `lines`: then it is one line for each of these pairs of a message
and its ids. To log a thousand lines at once takes a third of the time of a thousand records.
"""

from __future__ import annotations

import logging
import sys
import time
from functools import lru_cache
from typing import Any, Final

from handlers.cli.output import as_json, plain

_FIELDS: Final = (
    *("chat_id", "event_id", "version", "call_id", "build_id", "agent_id"),
    *("why", "public_key", "address"),
)
_MEANINGLESS: Final = "returning true from eof_received() has no effect when using ssl"
"""asyncio logs this whenever a TLS connection of nats-py ends; it means nothing."""


class JsonLines(logging.Formatter):
    """Formats a record as lines of JSON. It takes the ids of a line from the record's `extra`, or from its `lines`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object, or as one for each of its `lines`."""
        about = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        lines = record.__dict__.get("lines")
        if lines is not None:
            return "\n".join(as_json({**about, "message": text, **ids}) for text, ids in lines)
        given = {
            name: found for name in _FIELDS if (found := record.__dict__.get(name)) is not None
        }
        line = {**about, "message": record.getMessage(), **given}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return as_json(line)


@lru_cache(maxsize=1)
def _second(since_1970: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_1970))


class Lines(logging.Formatter):
    """Formats a record as one sanitized line, followed by its exception, or as one for each of its `lines`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — the base's name
        """Return the record without newlines in its messages."""
        message, shown = record.message, list[str]()
        for text, _ in record.__dict__.get("lines") or [(message, None)]:
            record.message = text
            shown.append(plain(super().formatMessage(record)).replace("\n", " "))
        record.message = message
        return "\n".join(shown)

    def formatException(self, ei: Any) -> str:  # noqa: N802 — the base's name
        """Return the sanitized traceback."""
        return plain(super().formatException(ei))


def configure(*, quiet: bool = False) -> None:
    """Log to stderr; with `quiet`, for commands that are no servers, only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(Lines("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    else:
        handler.setFormatter(JsonLines())
    # No format shows these, and each of them takes a system call or more for each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler])
    if quiet:
        # The command reports this error itself.
        logging.getLogger("bus.nats_client.denied").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.WARNING)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # `bus` logs the same events
    logging.getLogger("asyncio").addFilter(_is_meaningful)
    logging.getLogger("asyncpg").setLevel(logging.ERROR)  # the store reports lost connections


def _is_meaningful(record: logging.LogRecord) -> bool:
    return record.getMessage() != _MEANINGLESS
