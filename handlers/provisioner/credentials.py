"""What agents connect with: asked of the gateway, and asked again before it expires."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from bus import Bus, BusError, ServiceError, subjects
from handlers.publishing import Backoff, is_final
from handlers.publishing.agent_files import AgentConfig, Credential

_ANSWER_WITHIN: Final = 5.0

_log = logging.getLogger(__name__)


class Superseded(Exception):
    """The agent gets no credential, and will get none: its build is over, or NATS refuses to ask."""


async def obtain(bus: Bus, config: AgentConfig) -> Credential:
    """Ask until there is an answer. Raises Superseded."""
    backoff = Backoff()
    request = {
        "chat_id": config.chat_id,
        "workspace_id": config.workspace_id,
        "build_id": config.build_id,
        "agent_id": config.agent_id,
    }
    while True:
        try:
            answer = await bus.request(
                subjects.rpc("agent_credential"),
                json.dumps(request).encode(),
                timeout=_ANSWER_WITHIN,
            )
            return Credential.model_validate_json(answer.data)
        except BusError as no:
            if is_final(no):
                raise Superseded(str(no)) from None
            level = logging.WARNING if isinstance(no, ServiceError) else logging.INFO
            _log.log(level, "no credential for agent %s yet: %s", config.agent_id, no)
        except TimeoutError as no:
            _log.info("no credential for agent %s yet: %s", config.agent_id, no)
        except ValidationError as bad:
            _log.warning("a credential for agent %s can't be read: %s", config.agent_id, bad)
        await backoff.wait()


def renewed_in(credential: Credential) -> float | None:
    """Return the seconds until it should be renewed, in the middle of its life; None for never."""
    if credential.expires_at is None:
        return None
    half = (credential.expires_at - credential.issued_at) / 2
    return max(0.0, (credential.issued_at + half - datetime.now(UTC)).total_seconds())
