"""How many rpcs of one caller are worked at once, so that a flood of one leaves the others served."""

from __future__ import annotations

from collections import Counter
from typing import Final

from bus import Message, Responder, ServiceError
from handlers.access.grants import asker
from statemachine.admission import BUSY

MOST: Final = 1_000
"""Rpcs of one caller in hand; those that are held for a tool's answer have a limit of their own."""

_PASSAGE: Final = "_R_"
"""What the server has answers begin with that go to another account."""


class Turns:
    """Counts what is in hand, by who asks."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._in_hand: Counter[str] = Counter()

    def limited(self, responder: Responder) -> Responder:
        """Return a responder that answers 429 to who has too many in hand."""

        async def respond(message: Message) -> bytes:
            who = _who(message)
            if self._in_hand[who] >= self._most:
                words = f"{BUSY}{self._most} rpcs of yours are being answered; try again later"
                raise ServiceError(429, words)
            self._in_hand[who] += 1
            try:
                return await responder(message)
            finally:
                self._in_hand[who] -= 1
                if not self._in_hand[who]:
                    del self._in_hand[who]

        return respond


def _who(message: Message) -> str:
    """Return what the inbox for the answer begins with, and of other accounts whom the server names.

    The server gives their answers a way of its own. In our account nobody but the asker would have
    written that header.
    """
    inbox = message.reply.partition(".")[0]
    return inbox if inbox != _PASSAGE else asker(message.headers) or inbox
