"""The exceptions of the bus: one class for each case that a caller handles differently."""

from __future__ import annotations


class BusError(Exception):
    """Base class of all errors that the bus raises, except TimeoutError."""

    exit_status = 1
    """`workspaced` exits with this status when the error ends a command."""


class Unavailable(BusError):
    """No server, no stream, or the stream is full. Retry: the message may have been received or not."""


class NoConsumer(Unavailable):
    """The durable consumer does not exist. Retry after it was created."""


class Untrusted(Unavailable):
    """The server's certificate can't be verified, or it offers no TLS where TLS is required."""


class NoResponder(BusError):
    """Nobody is subscribed to the subject of a request."""


class Conflict(BusError):
    """The subject's last sequence is not the expected one; `last` is the actual one, if known."""

    def __init__(self, description: str, last: int | None = None) -> None:
        super().__init__(description)
        self.last = last


class Refused(BusError):
    """The server rejects the request, and would reject it again: a permission, a limit, a bad configuration."""


class Denied(Refused):
    """The credentials are valid, but do not permit to publish or subscribe to that subject."""


class ServiceError(BusError):
    """A micro service replied with an error. `code` is an HTTP status code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{code} {description}")
        self.code, self.description = code, description
