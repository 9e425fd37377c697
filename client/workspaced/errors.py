"""The exceptions of the client: all are `WorkspacedError`, and each says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workspaced.models import Answer


class WorkspacedError(Exception):
    """The base of all exceptions of this package."""

    code: int | None = None
    """The service error with which a gateway refused an rpc."""
    detail: str = ""
    """The gateway's text, without the name of the rpc."""


class Unavailable(WorkspacedError):
    """NATS, a gateway or an agent does not answer now. Ask again later with the same `call_id`."""


class Refused(WorkspacedError):
    """The key is not valid, or does not permit this. Obtain another key; asking again does not help."""


class Invalid(WorkspacedError, ValueError):
    """The request is malformed or too large. Correct what the message names."""


class NotFound(WorkspacedError, LookupError):
    """There is no such rpc, chat, call or file. Check the name or the id."""


class CallConflict(WorkspacedError):
    """The `call_id` was used in this chat with another tool or other arguments. Use a new `call_id`."""

    def __init__(self, message: str, answer: Answer | None = None) -> None:
        super().__init__(message)
        self.answer = answer
        """The answer to the first request with this `call_id`, if it came."""


class TooBusy(WorkspacedError):
    """A limit is reached, and nothing was done. Ask again later with a new `call_id`."""

    def __init__(self, message: str, answer: Answer | None = None) -> None:
        super().__init__(message)
        self.answer = answer
        """The answer to the call, if it came as an answer."""


class CannotRun(WorkspacedError):
    """The workspace cannot do it now, or the arguments were wrong. `next_step` names the tool to call first."""

    def __init__(self, message: str, next_step: str | None = None) -> None:
        if next_step is not None and next_step not in message:
            message = f"{message}; call {next_step} first"
        super().__init__(message)
        self.next_step = next_step
        """`create_workspace`, `start_workspace`, `stop_workspace`, or None."""


def of_service(code: str, name: str, text: str) -> WorkspacedError:
    """Return the exception for the service error of an rpc."""
    kinds: dict[str, type[WorkspacedError]] = {
        "400": Invalid,
        "403": Refused,
        "404": NotFound,
        "409": CallConflict,
        "413": Invalid,
        "429": TooBusy,
    }
    error = kinds.get(code, Unavailable)(f"{name}: {text} (error {code})")
    error.code, error.detail = int(code), text
    return error
