"""What agents connect with: asked of the gateway, and asked again before it expires."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

from bus import Bus, NoResponder, ServiceError, Unavailable, subjects
from handlers.agent_files import AgentConfig, Credential
from handlers.sending import Backoff

_ANSWER_WITHIN: Final = 5.0
_FINAL: Final = (400, 403, 404)

_log = logging.getLogger(__name__)


class Superseded(Exception):
    """The gateway gives this agent no credential, and will give it none."""


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
        except ServiceError as no:
            if no.code in _FINAL:
                raise Superseded(str(no)) from None
            _log.warning("no credential for agent %s yet: %s", config.agent_id, no)
        except (NoResponder, Unavailable, TimeoutError) as no:
            _log.info("no credential for agent %s yet: %s", config.agent_id, no)
        await backoff.wait()


def renewed_in(credential: Credential) -> float | None:
    """Return the seconds until it should be renewed, in the middle of its life; None for never."""
    if credential.expires_at is None:
        return None
    half = (credential.expires_at - credential.issued_at) / 2
    return max(0.0, (credential.issued_at + half - datetime.now(UTC)).total_seconds())
