"""The bodies of rpc requests (contract §5): what is expected, and the error that says so."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints

from bus import ServiceError
from statemachine.events import Frozen, Id, Label, Token
from statemachine.leniency import UnreadableError
from statemachine.leniency import read as lenient
from statemachine.strictness import Reject, parse


class ToolBody(Frozen):
    """Of the five tools."""

    chat_id: Id
    call_id: Token | None = None
    organization_id: Id
    owner_id: Id
    owner_name: Label
    args: dict[str, Any] = {}


class CancelBody(Frozen):
    """Of `cancel`."""

    chat_id: Id
    call_id: Token


class ChatBody(Frozen):
    """Of `get_chat`."""

    chat_id: Id


class ChatsBody(Frozen):
    """Of `list_chats`; `state` as on the wire, `cursor` from the page before."""

    organization_id: Id | None = None
    owner_id: Id | None = None
    state: Annotated[str, StringConstraints(min_length=1)] | None = None
    cursor: Id | None = None


class OrphansBody(Frozen):
    """Of `list_orphans`; `cursor` from the page before."""

    cursor: Id | None = None


class LogBody(Frozen):
    """Of `read_log`; `after`: the `next` of the page before."""

    chat_id: Id
    build_id: Id
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class EventsBody(Frozen):
    """Of `read_events`; `after`: a `seq`."""

    chat_id: Id
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class ArchiveBody(Frozen):
    """Of `template_archive`; `offset` in bytes."""

    version_id: Id
    offset: Annotated[int, Field(ge=0, lt=2**30)] = 0


class AgentCredentialBody(Frozen):
    """Of `agent_credential`."""

    chat_id: Id
    workspace_id: Id
    build_id: Id
    agent_id: Id


class FrontendCredentialBody(Frozen):
    """Of `frontend_credential`."""

    chat_ids: Annotated[tuple[Id, ...], Field(strict=False, min_length=1, max_length=100)]
    ttl_seconds: Annotated[float, Field(ge=1, le=7 * 24 * 3600)] = 3600


class IssueBody(Frozen):
    """Of `issue_credential`; `name` is what a provisioner is called on the bus, and a label else."""

    role: Literal["frontend", "chat-service", "provisioner", "operator", "worker", "gateway"]
    chat_ids: Annotated[tuple[Id, ...], Field(strict=False, max_length=100)] = ()
    name: Token | None = None
    pool: Token | None = None
    ttl_seconds: Annotated[float, Field(ge=1, le=30 * 24 * 3600)] = 3600


class CredentialsBody(Frozen):
    """Of `list_credentials`; `spent`: also what is no longer good; `cursor` from the page before."""

    spent: bool = False
    cursor: Token | None = None


class RevokeBody(Frozen):
    """Of `revoke_credential`."""

    public_key: Token


Body = TypeVar("Body", bound=Frozen)


def read(model: type[Body], data: bytes) -> Body:
    """Read a request's body, as leniently as an event's data.

    Raises ServiceError 400 that names every wrong field.
    """
    try:
        return lenient(model, parse(data or b"{}"), "body")
    except Reject as bad:
        raise ServiceError(400, f"body: {bad.detail}") from None
    except UnreadableError as bad:
        raise ServiceError(400, str(bad)) from None
