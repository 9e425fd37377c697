"""Runs workspaced with a bug: `decide` fails for every event whose data contain PLANTED."""

from __future__ import annotations

import sys
from typing import Any

from handlers.cli import main
from handlers.worker import chat

PLANTED = "the planted bug"
decide = chat.decide


def broken(workspace: Any, event: Any, *more: Any) -> Any:
    if PLANTED in str(event.data):
        raise ZeroDivisionError("a bug")
    return decide(workspace, event, *more)


if __name__ == "__main__":
    chat.decide = broken
    sys.exit(main())
