"""The store's exceptions. They are all the database's fault, so the caller tries again without limit.

An error that blames the data of a transaction passes through as the driver raised it, because the same data
will fail again.
"""

from __future__ import annotations


class StoreUnavailableError(Exception):
    """The database can't be reached or accepts no changes now. Try again later."""


class UnreachableError(StoreUnavailableError):
    """No connection can be opened. The message does not name the database: callers add its redacted URL."""


class MisconfiguredError(StoreUnavailableError):
    """The database, or its URL, has to be changed first. Waiting does not help."""


class AccessDeniedError(UnreachableError, MisconfiguredError):
    """The server rejects this user, or has no such database."""


class WorkRefusedError(StoreUnavailableError):
    """The database answers but refuses this transaction, and not because of its data. Try again later.

    Other transactions may succeed: a trigger may refuse one chat, a missing table refuses all chats.
    """


class TransientError(StoreUnavailableError):
    """The transaction hit a deadlock, a lock or a timeout. The same transaction may succeed next time."""
