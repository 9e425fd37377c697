"""The part of the store's port that is asked when the bus lost something: what to publish again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from statemachine.chat import Chat
    from statemachine.store import Key, Outgoing, StoredCall


_LOST: Final = "lost:"
JOB_KEPT: Final = timedelta(days=1)
"""How long after its `not_after` a job is kept: its build may have begun, and then is to be ended."""


@dataclass(frozen=True, slots=True)
class Job:
    """A build that was asked for, as it was published."""

    build_id: str
    chat_id: str
    subject: str
    payload: bytes
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Seen:
    """A stream as it was seen last, or the mark that it lost something."""

    created: str
    last: int

    @classmethod
    def lost(cls, token: str) -> Seen:
        """Return the mark; `token`: what names all that is published again for this loss."""
        return cls(f"{_LOST}{token}", 0)

    @property
    def token(self) -> str | None:
        """What names the loss; None: it is no mark."""
        return self.created.removeprefix(_LOST) if self.created.startswith(_LOST) else None


@dataclass(frozen=True, slots=True)
class Origin:
    """Which database this is, and which one the rows were written in, if that is known.

    They differ after a restore: the rows went back to an earlier moment.
    """

    here: str
    noted: str | None

    @property
    def differs(self) -> bool:
        """Whether the rows are not known to be at home here."""
        return self.here != self.noted


class Recovering(Protocol):
    """What the truth is, page by page, in the order of the key that `after` names."""

    async def origin(self) -> Origin:
        """Return which database this is, and which one the rows were written in."""
        ...

    async def settle(self, here: str) -> None:
        """Note that the rows are at home in this database."""
        ...

    async def streams_seen(self) -> dict[str, Seen]:
        """Return the streams that were noted, by name."""
        ...

    async def doubt_streams(self, before: Mapping[str, Seen | None], token: str) -> None:
        """Mark streams as having lost something, each only where it is still noted as in `before`.

        So all who find a loss at the same time find one mark, whoever made it.
        """
        ...

    async def see_streams(self, seen: Mapping[str, Seen], *, anew: bool = False) -> None:
        """Note how far streams are. Only `anew` puts one in the place of another, or goes back."""
        ...

    async def published_states(
        self, *, after: str | None = None, most: int = 500
    ) -> Sequence[Chat]:
        """Return the chats that have a version, by chat id."""
        ...

    async def jobs(
        self, *, after: str | None = None, most: int = 100
    ) -> Sequence[tuple[Job, Chat]]:
        """Return the jobs that are to be answered with their chats, by build id; for a day after their time."""
        ...

    async def answers(self, *, after: Key | None = None, most: int = 500) -> Sequence[StoredCall]:
        """Return the calls that were answered within the last day, by key."""
        ...

    async def inhabited(self, *, after: str | None = None, most: int = 500) -> Sequence[Chat]:
        """Return the chats with agents that are connected, by chat id."""
        ...

    async def left_over(self, *, after: int = 0, most: int = 500) -> Sequence[Outgoing]:
        """Return what is in the outbox, by row."""
        ...
