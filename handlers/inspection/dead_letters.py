"""Dead letters: what could not be accepted, why, and what to do about it.

Workers read them for the gateway, and the command line reads them itself. `workspaced dead replay` and `dead drop` use
an operator's key: workers may not publish events, and the gateway neither those of provisioners nor delete anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bus import Bus, StoredMessage, subjects
from bus.streams import DEAD, IN
from handlers.inspection.messages import DeadLetter, DeadLettersPage, ReadDeadLetter
from statemachine.codec import MAX_SIZE, timestamp
from statemachine.strict_json import RejectReason

PAGE: Final = 100
"""The most letters on a page."""
SHOWN: Final = 128 * 1024
"""The most bytes of a message that a reply shows."""
_ANSWERED: Final = "workspaced.tool_requested."
_SEND_AGAIN: Final = "its sender has to send it again, corrected, with a new id; then drop this one"
_ADVICE: Final[Mapping[str, str]] = {
    RejectReason.NOT_JSON: f"it is not JSON: {_SEND_AGAIN}",
    RejectReason.NOT_CLOUDEVENTS: f"it is not a CloudEvent: {_SEND_AGAIN}",
    RejectReason.BAD_TYPE: "no worker knows its type for this subject: if a newer version of workspaced does, "
    f"upgrade the workers and replay it; otherwise {_SEND_AGAIN}",
    RejectReason.BAD_SOURCE: f"its `source` and its subject name different senders: {_SEND_AGAIN}",
    RejectReason.BAD_DATA: f"its data is wrong: {_SEND_AGAIN}",
    RejectReason.CHAT_MISMATCH: f"its `subject` names another chat than it was published for: {_SEND_AGAIN}",
    RejectReason.TOO_LARGE: f"it is too large: {_SEND_AGAIN}",
    RejectReason.INTERNAL: "an error of workspaced: see the logs of the workers at that time; replay it when the "
    "cause is mended",
}
"""What to do, by reason."""


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Reads the stream of dead letters."""

    bus: Bus

    async def page(self, before: int | None, *, limit: int = PAGE) -> DeadLettersPage:
        """Return a page of dead letters, newest first; only those with a sequence below `before`."""
        info = await self.bus.stream_info(DEAD.name)
        below = min(before or info.last + 1, info.last + 1)
        found: list[DeadLetter] = []
        size = limit
        while below > info.first and len(found) < limit:
            first = max(info.first, below - size)
            letters = await self._between(first, below)
            found += [shown(letter) for letter in reversed(letters)]
            below, size = first, size * 2  # many may have been dropped
        page: DeadLettersPage = {"letters": found[:limit]}
        if len(found) > limit or (found and below > info.first):
            page["next"] = page["letters"][-1]["sequence"]
        return page

    async def read(self, sequence: int) -> ReadDeadLetter | None:
        """Return a dead letter; None if there is none with that sequence."""
        letter = await self.find(sequence)
        if letter is None:
            return None
        about = shown(letter)
        found: ReadDeadLetter = {
            "sequence": about["sequence"],
            "at": about["at"],
            "subject": about["subject"],
            "reason": about["reason"],
            "detail": about["detail"],
            "chat_id": about["chat_id"],
            "sender": about["sender"],
            "size": about["size"],
            "body": letter.data[:SHOWN].decode("utf-8", "replace"),
            "headers": original_headers(letter),
            "advice": _ADVICE.get(about["reason"], _SEND_AGAIN),
            "refusal": refusal(letter),
        }
        return found

    async def find(self, sequence: int) -> StoredMessage | None:
        """Return the dead letter with that sequence."""
        letter = await self.bus.get_next(DEAD.name, subjects.DEADS, sequence - 1)
        return letter if letter is not None and letter.sequence == sequence else None

    async def _between(self, first: int, end: int) -> list[StoredMessage]:
        """Return the letters from a sequence to before another."""
        found: list[StoredMessage] = []
        at = first - 1
        while (letter := await self.bus.get_next(DEAD.name, subjects.DEADS, at)) is not None:
            if letter.sequence >= end:
                break
            found.append(letter)
            at = letter.sequence
        return found


def shown(letter: StoredMessage) -> DeadLetter:
    """Return what the list shows of a dead letter."""
    subject = letter.headers.get("Workspaced-Subject", "")
    inbound = subjects.parse_inbound(subject)
    return {
        "sequence": letter.sequence,
        "at": None if letter.stored_at is None else timestamp(letter.stored_at),
        "subject": subject,
        "reason": letter.headers.get("Workspaced-Reason", ""),
        "detail": letter.headers.get("Workspaced-Detail", ""),
        "chat_id": None if inbound is None else inbound.chat,
        "sender": None if inbound is None else inbound.sender,
        "size": len(letter.data),
    }


def original_headers(letter: StoredMessage) -> dict[str, str]:
    """Return the headers of the letter's sender."""
    try:
        found = json.loads(letter.headers.get("Workspaced-Headers", "{}"))
    except ValueError:
        return {}
    return (
        {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
    )


def refusal(letter: StoredMessage) -> str | None:
    """Return why a letter must not be published again, or None.

    Workers put each letter into this stream with the subject on which its sender was admitted to publish, and an
    unchanged message on that subject passes their checks only if it could have passed them before.
    """
    inbound = subjects.parse_inbound(letter.headers.get("Workspaced-Subject", ""))
    if inbound is None:
        return f"it is no message of {IN.name}: only events of chat services, provisioners and agents can be replayed"
    if len(letter.data) > MAX_SIZE:
        return f"it has {len(letter.data)} bytes, and workers accept {MAX_SIZE} at most"
    if inbound.kind == "tool" and _has_call_id(letter.data):
        return (
            "the caller was told that this call failed, and may have gone on without it: it has to call again, with a "
            "new call_id"
        )
    return None


def _has_call_id(body: bytes) -> bool:
    """Return whether a message is about a call, whose caller then got an error as the answer."""
    try:
        found = json.loads(body)
        return bool(found["data"]["call_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
