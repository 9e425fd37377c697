"""Logging of a process: to stderr, for people on a terminal, as JSON lines otherwise."""

from __future__ import annotations

import logging
import sys
import time
from functools import lru_cache
from typing import Any, Final

from handlers.cli.sanitize import as_json, plain

_FIELDS: Final = (
    *("chat_id", "event_id", "version", "call_id", "build_id", "agent_id"),
    *("why", "public_key", "address"),
)
_OF_NO_USE: Final = "returning true from eof_received() has no effect when using ssl"
"""asyncio's warning at each end of a TLS connection of nats-py: nothing is wrong, nothing to do."""


class JsonLines(logging.Formatter):
    """One object a line, with the ids that a record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object."""
        line = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = record.__dict__
        line |= {name: fields[name] for name in _FIELDS if fields.get(name) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return as_json(line)


@lru_cache(maxsize=1)
def _second(since_1970: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_1970))


class Lines(logging.Formatter):
    """One line a record, which no value in it can break or colour; an exception follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — the base's name
        """Return the line."""
        return plain(super().formatMessage(record)).replace("\n", " ")

    def formatException(self, ei: Any) -> str:  # noqa: N802 — the base's name
        """Return the exception's lines."""
        return plain(super().formatException(ei))


def configure(*, quiet: bool = False) -> None:
    """Send this process' logs to stderr; `quiet` for commands whose output is the point."""
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(Lines("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    else:
        handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler])
    if quiet:
        # A command says it in words of its own, once.
        logging.getLogger("bus.connection.denied").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.WARNING)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # what it says is logged by `bus`
    logging.getLogger("asyncio").addFilter(_tells)
    logging.getLogger("asyncpg").setLevel(logging.ERROR)  # what is lost is told by the store


def _tells(record: logging.LogRecord) -> bool:
    return record.getMessage() != _OF_NO_USE
