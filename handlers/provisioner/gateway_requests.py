"""Requests of the provisioner to the gateway: for credentials of agents, and for archives of templates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from bus import Backoff, Bus, BusError, ServiceError, is_final, subjects
from handlers.publishing.agent_files import AgentConfig, AgentCredential

_ANSWER_WITHIN: Final = 5.0

_log = logging.getLogger(__name__)


class Superseded(Exception):
    """The agent can't get a credential any more: its build is superseded, or NATS refuses the request."""


async def obtain_credential(bus: Bus, config: AgentConfig) -> AgentCredential:
    """Request a credential, with retries. Raises Superseded."""
    backoff, about = Backoff(), f"the credential of agent {config.agent_id}"
    while True:
        try:
            answer = await _request(bus, "agent_credential", config.ids(), about)
            return AgentCredential.model_validate_json(answer)
        except BusError as error:
            raise Superseded(str(error)) from None
        except ValidationError as error:
            _log.warning("%s can't be read: %s", about, error)
        await backoff.wait()


def renewed_in(credential: AgentCredential) -> float | None:
    """Return the seconds until the middle of the lifetime, when to renew; None if it does not expire."""
    if credential.expires_at is None:
        return None
    half = (credential.expires_at - credential.issued_at) / 2
    return max(0.0, (credential.issued_at + half - datetime.now(UTC)).total_seconds())


async def fetch_piece(bus: Bus, version_id: str, offset: int) -> bytes:
    """Request a piece of a template version's archive, with retries; it is empty after the end.

    Raises a BusError that a retry would get again.
    """
    request = {"version_id": version_id, "offset": offset}
    return await _request(bus, "template_archive", request, f"the archive of version {version_id}")


async def _request(bus: Bus, rpc: str, body: Mapping[str, object], about: str) -> bytes:
    """Call an rpc until it is answered. Raises a BusError that a retry would get again."""
    backoff = Backoff()
    while True:
        try:
            answer = await bus.request(
                subjects.rpc(rpc), json.dumps(body).encode(), timeout=_ANSWER_WITHIN
            )
        except (BusError, TimeoutError) as error:
            if isinstance(error, BusError) and is_final(error):
                raise
            level = logging.WARNING if isinstance(error, ServiceError) else logging.INFO
            _log.log(level, "can't get %s yet, trying again: %s", about, error)
        else:
            return answer.data
        await backoff.wait()
