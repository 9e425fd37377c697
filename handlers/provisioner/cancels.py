"""Requests of workers to cancel builds: read, and remembered for jobs that arrive after them."""

from __future__ import annotations

import json
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from statemachine.events import Id

_TYPE: Final = "workspaced.build_cancel.v1"
_REMEMBERED: Final = 10_000
"""Requests that are remembered at least; workers repeat a request whenever its build is reported as begun."""


class BuildCancel(BaseModel):
    """The build to cancel. Whoever works on it or gets its job ends it; others ignore the request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    workspace_id: Id
    build_id: Id


def read_cancel(body: bytes) -> BuildCancel | None:
    """Read a CloudEvent from the pool's subject of cancels; return None if it is another message."""
    try:
        event = json.loads(body)
        if not isinstance(event, dict) or event.get("type") != _TYPE:
            return None
        return BuildCancel.model_validate(event.get("data"))
    except (ValueError, RecursionError, ValidationError):
        return None


class Cancels:
    """The builds that workers have asked to cancel, the newest requests last."""

    def __init__(self) -> None:
        self._builds: dict[str, None] = {}

    def add(self, build_id: str) -> None:
        """Remember a build, and forget the oldest one if there are too many."""
        self._builds[build_id] = None
        if len(self._builds) > _REMEMBERED:
            del self._builds[next(iter(self._builds))]

    def __contains__(self, build_id: str) -> bool:
        return build_id in self._builds
