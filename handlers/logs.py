"""Logging of a process: to stderr, for people on a terminal, as JSON lines otherwise."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

_FIELDS: Final = ("chat_id", "event_id", "version", "call_id", "build_id", "agent_id")


class JsonLines(logging.Formatter):
    """One object a line, with the ids that a record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            name: getattr(record, name)
            for name in _FIELDS
            if getattr(record, name, None) is not None
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(*, quiet: bool = False) -> None:
    """Send this process' logs to stderr; `quiet` for commands whose output is the point."""
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        )
    else:
        handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler])
    logging.getLogger("transitions").setLevel(logging.WARNING)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # what it says is logged by `bus`
