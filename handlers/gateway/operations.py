"""The rpcs of operators: what runs, which calls wait, how long builds took, and what was thrown away.

Workers read what is in NATS, because they may read every stream; the gateway, which more people reach, may not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, cast

from bus import Bus, NoResponder, ServiceError, subjects
from handlers.gateway.replies import BuildTimesReply, CallsPage, TemplateTimes, WaitingCall
from handlers.gateway.requests import (
    BuildTimesBody,
    CallsBody,
    DeadLetterBody,
    DeadLettersBody,
    StatusBody,
)
from handlers.inspection.messages import DeadLettersPage, ReadDeadLetter, StatusReply
from handlers.inspection.status import Inspection
from statemachine.calls import Call
from statemachine.chat import Chat
from statemachine.codec import timestamp
from statemachine.states import STATE_INFO
from statemachine.store import BuildTimes, CallKey, Store

ANSWER_WITHIN: Final = 10.0
"""Seconds that a worker may take."""
PAGE: Final = 100
"""The most calls on a page."""
MOST_BUILDS: Final = 10_000
"""The most builds that figures are made of."""
_WAITS_FOR: Final = {
    "building": "the end of build {}",
    "stopping": "the end of build {}",
    "agent_connecting": "the agent, which has not connected yet",
    "scripts_running": "the end of the startup scripts",
}


@dataclass(frozen=True, slots=True)
class Operations:
    """Answers from the store, and from what a worker reads."""

    store: Store
    bus: Bus

    async def status(self, _body: StatusBody) -> StatusReply:
        """Return what runs, what waits, and what is wrong; less of it if no worker runs."""
        try:
            return cast(StatusReply, await self._ask_worker(subjects.WORKER_STATUS, {}))
        except NoResponder:
            return await Inspection(self.store, self.bus, reads_streams=False).run()
        except TimeoutError:
            status = await Inspection(self.store, self.bus, reads_streams=False).run()
            status["problems"].insert(
                0,
                {
                    "what": "a worker runs, but does not answer",
                    "where": "workers",
                    "do": "see its log; start it again if it hangs",
                },
            )
            return status

    async def list_dead(self, body: DeadLettersBody) -> DeadLettersPage:
        """Return a page of dead letters, newest first. Raises ServiceError 503."""
        return cast(DeadLettersPage, await self._of_worker({"before": body.before}))

    async def read_dead(self, body: DeadLetterBody) -> ReadDeadLetter:
        """Return a dead letter. Raises ServiceError 404 and 503."""
        found = await self._of_worker({"sequence": body.sequence})
        if found is None:
            raise ServiceError(
                404, f"there is no dead letter {body.sequence}: it was dropped, or has expired"
            )
        return cast(ReadDeadLetter, found)

    async def _of_worker(self, body: object) -> Any:
        try:
            return await self._ask_worker(subjects.WORKER_DEAD, body)
        except (NoResponder, TimeoutError):
            raise ServiceError(
                503,
                "no worker answers, and only workers read dead letters for the gateway: start one, or use "
                "`workspaced dead list`",
            ) from None

    async def _ask_worker(self, subject: str, body: object) -> Any:
        reply = await self.bus.request(subject, json.dumps(body).encode(), timeout=ANSWER_WITHIN)
        return json.loads(reply.data)

    async def list_calls(self, body: CallsBody) -> CallsPage:
        """Return a page of the calls that wait, those first that have waited longest."""
        after = None if body.cursor is None else CallKey(*body.cursor.split(".", 1))
        calls = await self.store.statistics.open_calls(
            chat_id=body.chat_id, after=after, limit=PAGE + 1
        )
        found = await self.store.chats.get_many(list({call.chat_id for call in calls}))
        chats = {chat.chat_id: chat for chat in found}
        page: CallsPage = {
            "calls": [
                _waiting(call, chats.get(call.chat_id) or Chat(chat_id=call.chat_id))
                for call in calls[:PAGE]
            ]
        }
        if len(calls) > PAGE:
            last = calls[PAGE - 1]
            page["next"] = f"{last.chat_id}.{last.call_id}"
        return page

    async def build_times(self, body: BuildTimesBody) -> BuildTimesReply:
        """Return how long the builds took that ended in a period until now."""
        until = await self.store.now()
        since = until - timedelta(seconds=body.seconds)
        builds, times = await self.store.statistics.build_times(since, until, limit=MOST_BUILDS)
        return {
            "since": timestamp(since),
            "until": timestamp(until),
            "builds": builds,
            "complete": builds < MOST_BUILDS,
            "templates": [_template_times(one) for one in times],
        }


def _waiting(call: Call, chat: Chat) -> WaitingCall:
    state = STATE_INFO[chat.state].wire
    number = "?" if chat.build is None else chat.build.number
    return {
        "chat_id": call.chat_id,
        "call_id": call.call_id,
        "tool": call.tool,
        "asked_at": timestamp(call.asked_at),
        "state": state,
        "waits_for": _WAITS_FOR.get(state, "a worker, which looks at it next").format(number),
        "deadline": None if chat.deadline is None else timestamp(chat.deadline),
    }


def _template_times(times: BuildTimes) -> TemplateTimes:
    return cast(
        TemplateTimes,
        {
            "template": times.template,
            "transition": times.transition,
            "count": times.count,
            "failed": times.failed,
            "canceled": times.canceled,
            "median": times.median,
            "p90": times.p90,
            "longest": times.longest,
            "queued": times.queued,
        },
    )
