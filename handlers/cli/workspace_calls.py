"""Calls of the tools that run commands and use files in a workspace, for the command line."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import uuid4

from bus import Backoff, Bus, NoResponder, ServiceError, Unavailable, subjects
from handlers.errors import NotFoundError, WorkspacedError

_PATIENCE: Final = 80.0
"""Seconds for which a request is held at most: a call may wait for 60 s."""
_ASK_AGAIN: Final = frozenset((502, 503, 504))
_ATTEMPTS: Final = 12
"""Attempts without an answer, with delays of up to 5 s: about 40 s."""


class CallRefused(WorkspacedError):
    """The workspace cannot do what was asked."""


async def ask_workspace(bus: Bus, tool: str, chat: str, /, **args: Any) -> dict[str, Any]:
    """Call a tool in the chat's workspace and return its result.

    Asks again with the same call while nobody answers: the call is done once. Raises CallRefused, ServiceError
    and Unavailable.
    """
    body = {"chat_id": chat, "call_id": uuid4().hex, "args": args}
    backoff = Backoff()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            reply = await bus.request(
                subjects.rpc(tool), json.dumps(body).encode(), timeout=_PATIENCE
            )
        except ServiceError as error:
            if error.code not in _ASK_AGAIN or attempt == _ATTEMPTS:
                raise
        except NoResponder as error:
            if attempt == _ATTEMPTS:
                raise NotFoundError(
                    f"{error}: start `workspaced gateway` on this NATS, or `workspaced up`"
                ) from error
        except (TimeoutError, Unavailable):
            if attempt == _ATTEMPTS:
                raise
        else:
            resolved = json.loads(reply.data)
            if resolved["is_error"]:
                raise CallRefused(f"{tool}: {resolved['result']['error']}")
            return dict(resolved["result"])
        await backoff.wait()
    raise AssertionError("the last attempt raises")
