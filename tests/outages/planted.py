"""Runs workspaced with a bug: `decide` fails for every event whose data contain PLANTED."""

from __future__ import annotations

import sys
from typing import Any

from handlers.cli import main
from statemachine import step

PLANTED = "the planted bug"
decide = step.decide


def broken(workspace: Any, event: Any, *more: Any) -> Any:
    if PLANTED in str(event.data):
        raise ZeroDivisionError("a bug")
    return decide(workspace, event, *more)


if __name__ == "__main__":
    step.decide = broken
    sys.exit(main())
