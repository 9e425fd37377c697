"""What is refused because too much waits already: calls without an answer, jobs that nobody took."""

from __future__ import annotations

from typing import Final

from statemachine.calls import Answered, Call, CallOutcome, Load, Requested
from statemachine.chat import Chat
from statemachine.events import Transition

BUSY: Final = "too busy: "
"""How the error of every such refusal begins; by rpc it is a service error 429."""


def check_limits(call: Call, verdict: CallOutcome, chat: Chat, load: Load) -> Answered | None:
    """Refuse what would wait, or be built, over a limit. Who waits already goes on waiting."""
    if isinstance(verdict, Answered):
        return None
    if call.wait is None and chat.open_calls >= load.calls_per_chat:
        return _busy(f"{chat.open_calls} calls of this chat wait already; ask when one is answered")
    if call.wait is None and load.full:
        return _busy("as many calls wait as may, over all chats")
    if isinstance(verdict, Requested) and verdict.build.transition is Transition.START:
        pool = verdict.build.template.pool if verdict.build.template else ""
        if pool in load.full_pools:
            return _busy(f"as many builds wait for a provisioner of pool '{pool}' as may")
    return None


def _busy(why: str) -> Answered:
    words = f"{BUSY}{why}. Nothing was done; try again later, with a new call_id"
    return Answered({"error": words}, is_error=True)
