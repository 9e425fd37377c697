"""What can go wrong on the bus: one class for each thing that a caller can act on."""

from __future__ import annotations


class BusError(Exception):
    """The bus could not do what was asked."""

    exit_status = 1
    """`workspaced` exits with this status when the error ends a command."""


class Unavailable(BusError):  # the word that a caller reads
    """Not now: no server, no stream, or a full one. It may have arrived: send it again."""


class NoConsumer(Unavailable):  # the word that a caller reads
    """The durable consumer is not there: not now, until somebody makes it."""


class Untrusted(Unavailable):
    """Whoever answers there can't show to be the server, or not in secret: until somebody mends that."""


class NoResponder(BusError):  # the word that a caller reads
    """Nobody serves that subject."""


class Conflict(BusError):  # the word that a caller reads
    """The subject's last sequence is not the expected one; `last`: what stands there, if told."""

    def __init__(self, description: str, last: int | None = None) -> None:
        super().__init__(description)
        self.last = last


class Refused(BusError):  # the word that a caller reads
    """The server answered no, and would again: a permission, a limit, a bad configuration."""


class Denied(Refused):
    """The server let us in, but these credentials may not publish or subscribe there."""


class ServiceError(BusError):
    """A micro service answered with an error; `code` as in HTTP."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{code} {description}")
        self.code, self.description = code, description
