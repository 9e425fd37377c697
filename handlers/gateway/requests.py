"""The bodies of rpc requests, as pydantic models that validate them.

docs/schemas is made from these models: run `make schemas` after a change.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import ConfigDict, Field, StringConstraints

from bus import ServiceError
from statemachine.events import Frozen, Id, Label, Token
from statemachine.leniency import UnreadableError, unknown_keys
from statemachine.leniency import read as lenient
from statemachine.strict_json import Reject, parse

MAX_BODY: Final = 512 * 1024
"""Maximum size of a body, in bytes."""

IssuableRole = Literal["frontend", "chat-service", "provisioner", "operator", "worker", "gateway"]
"""The roles that a key can be issued for."""


class Granting(Frozen):
    """A body that grants something, or takes it back. An unknown key, such as a misspelled limit, makes it invalid."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ToolBody(Frozen):
    """The body of an rpc that calls a tool."""

    chat_id: Id
    call_id: Token | None = None
    """Identifies the call within its chat; absent: the gateway generates one."""
    organization_id: Id
    """The chat's organization. The first accepted request of a chat fixes it."""
    owner_id: Id
    """The chat's owner. The first accepted request of a chat fixes it."""
    owner_name: Label
    """The owner's name, the first part of a workspace's full name."""
    args: dict[str, Any] = {}
    """The arguments of the tool."""


class ExecBody(Frozen):
    """The body of an rpc that runs a command or uses files in a chat's workspace."""

    chat_id: Id
    call_id: Token | None = None
    """The same one in the same workspace is done once; absent: the gateway generates one."""
    organization_id: Id | None = None
    """The chat's organization; it may be absent."""
    owner_id: Id | None = None
    """The chat's owner; it may be absent."""
    owner_name: Label | None = None
    """The owner's name; it may be absent."""
    args: dict[str, Any] = Field(default={}, repr=False)
    """The arguments of the tool."""


class CancelBody(Frozen):
    """The body of `cancel`, which ends the wait of a call."""

    chat_id: Id
    call_id: Token


class CancelBuildBody(Frozen):
    """The body of `cancel_build`, which ends a build before it is done."""

    chat_id: Id
    build_id: Id | None = None
    """The build to cancel. Absent: the one that is in flight."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    """Text for people."""


class ChatBody(Frozen):
    """The body of `get_chat`, which returns the state of a chat."""

    chat_id: Id
    details: bool = False
    """Whether the reply contains `details`."""


class ChatsBody(Frozen):
    """The body of `list_chats`, which returns the states of all chats that fit, page by page."""

    organization_id: Id | None = None
    """Only chats of this organization."""
    owner_id: Id | None = None
    """Only chats of this owner."""
    state: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Only chats in this state, for example `failed`."""
    template_id: Id | None = None
    """Only chats whose workspace was made from this template."""
    query: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """Only chats whose id, workspace's name or owner's name contains this text, without regard to case."""
    cursor: Id | None = None
    """The `next` of the page before."""
    details: bool = False
    """Whether each chat of the reply contains `details`."""


class KeepBody(Frozen):
    """The body of `keep`, after which the lifetime of the chat's workspace ends no sooner than asked for."""

    chat_id: Id
    seconds: Annotated[float, Field(gt=0)]
    """From now. More than 7 days is taken as 7 days."""


class OrphansBody(Frozen):
    """The body of `list_orphans`, which returns the workspaces that exist and belong to no chat."""

    cursor: Id | None = None
    """The `next` of the page before."""


class LogBody(Frozen):
    """The body of `read_log`, which returns the stored log lines of a build, page by page."""

    chat_id: Id
    build_id: Id
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The `next` of the page before."""


class EventsBody(Frozen):
    """The body of `read_events`, which returns the event log of a chat, page by page."""

    chat_id: Id
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Only entries whose `seq` is above this one."""


_CALL_CURSOR: Final = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[A-Za-z0-9_-]{1,128}$"
"""A call's chat and its id."""


class StatusBody(Frozen):
    """The body of `status`, which tells operators what runs, what waits, and what is wrong."""


class CallsBody(Frozen):
    """The body of `list_calls`, which returns the calls that wait for their answers, oldest first, page by page."""

    chat_id: Id | None = None
    """Only calls of this chat."""
    cursor: Annotated[str, StringConstraints(pattern=_CALL_CURSOR)] | None = None
    """The `next` of the page before."""


class BuildTimesBody(Frozen):
    """The body of `build_times`, which tells how long builds took that have ended."""

    seconds: Annotated[float, Field(gt=0, le=366 * 24 * 3600)] = 7 * 24 * 3600
    """How long ago the period begins; it ends now."""


class DeadLettersBody(Frozen):
    """The body of `list_dead`, which returns the dead letters, newest first, page by page."""

    before: Annotated[int, Field(gt=0, lt=2**63)] | None = None
    """The `next` of the page before: only letters with a lower `sequence`."""


class DeadLetterBody(Frozen):
    """The body of `read_dead`, which returns one dead letter with the message."""

    sequence: Annotated[int, Field(gt=0, lt=2**63)]


class ArchiveBody(Frozen):
    """The body of `template_archive`, which returns a piece of a template folder's tar.gz.

    The reply is not JSON but the bytes themselves: at most 256 KiB, none at the end.
    """

    version_id: Id
    offset: Annotated[int, Field(ge=0, lt=2**30)] = 0
    """In bytes, from the beginning."""


class AgentCredentialBody(Granting):
    """The body of `agent_credential`, by which a provisioner obtains a key for an agent."""

    chat_id: Id
    workspace_id: Id
    build_id: Id
    agent_id: Id


class FrontendCredentialBody(Granting):
    """The body of `frontend_credential`, by which a chat service obtains a key for a frontend."""

    chat_ids: Annotated[tuple[Id, ...], Field(strict=False, min_length=1, max_length=100)]
    """The chats that the key can follow."""
    ttl_seconds: Annotated[float, Field(ge=1, le=7 * 24 * 3600)] = 3600
    """How long the key is valid."""
    exec: bool = False
    """Whether the frontend sees the commands that run in the workspaces; their output may hold secrets."""


class IssueBody(Granting):
    """The body of `issue_credential`, by which an operator issues a key for a role."""

    role: IssuableRole
    chat_ids: Annotated[tuple[Id, ...], Field(strict=False, max_length=100)] = ()
    """For the role `frontend`, and for no other: the chats that the key can follow."""
    name: Token | None = None
    """For a provisioner, which must have one: its name in subjects. Otherwise a label."""
    pool: Token | None = None
    """For a provisioner, and for no other role: the pool whose jobs it takes."""
    ttl_seconds: Annotated[float, Field(ge=1, le=30 * 24 * 3600)] = 3600
    """How long the key is valid; for frontends and operators at most 7 days."""
    exec: bool | None = None
    """For a chat service: whether it may run commands, by default true. For a frontend: whether it sees those
    that run, by default false. For no other role."""


class CredentialsBody(Frozen):
    """The body of `list_credentials`, which returns the keys that were issued, page by page."""

    spent: bool = False
    """Also keys that have expired, were revoked, or belong to an agent of an older build."""
    cursor: Token | None = None
    """The `next` of the page before."""


class RevokeBody(Granting):
    """The body of `revoke_credential`, which ends a key and its connections."""

    public_key: Token


TokenRole = Literal["operator", "chat-service", "chat", "frontend"]
"""The roles that a bearer token can be issued for."""


class IssueTokenBody(Granting):
    """The body of `issue_token`, which issues a bearer token for the HTTP interface."""

    role: TokenRole
    chat_ids: Annotated[tuple[Id, ...], Field(strict=False, max_length=100)] = ()
    """For role `chat` exactly one chat, for role `frontend` at least one."""
    organization_id: Id | None = None
    """For role `chat`: the organization of its calls."""
    owner_id: Id | None = None
    """For role `chat`: the owner of its calls."""
    owner_name: Label | None = None
    """For role `chat`: the name of that owner."""
    ttl_seconds: Annotated[float, Field(ge=1, le=30 * 24 * 3600)] = 3600
    """How long the token is valid; for operators at most 7 days."""
    exec: bool | None = None
    """Whether the holder may run commands in workspaces; by default true. For role `frontend`: whether it
    sees the commands that run; by default false."""


class IssuePageCodeBody(Granting):
    """The body of `issue_page_code`, which issues a code that signs a browser in at the page once."""

    chat_ids: Annotated[tuple[Id, ...], Field(strict=False, max_length=100)] = ()
    """The chats that the browser may follow, as a frontend; absent: all, as an operator."""


class TokensBody(Frozen):
    """The body of `list_tokens`, which returns the valid tokens, page by page."""

    cursor: Id | None = None
    """The `next` of the page before."""


class RevokeTokenBody(Frozen):
    """The body of `revoke_token`, which ends a token, its streams and its waits."""

    id: Id


class CheckTokenBody(Frozen):
    """The body of `check_token`, which returns the rights of a token."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=256)]


Body = TypeVar("Body", bound=Frozen)


def parse_body(model: type[Body], data: bytes) -> tuple[Body, list[str]]:
    """Validate a request's body, with the same leniency as the data of an event.

    Return the body, and the names of its keys that the rpc does not have. Raises ServiceError 413 for a
    body that is too large, and 400 for an invalid one; its text then names every invalid field.
    """
    if len(data) > MAX_BODY:
        raise ServiceError(413, f"body: {len(data)} bytes; at most {MAX_BODY} are accepted")
    try:
        body = parse(data or b"{}", stored=model is not ExecBody)
        parsed = lenient(model, body, "body")
        return parsed, unknown_keys(model, body) if isinstance(body, dict) else []
    except Reject as error:
        raise ServiceError(400, f"body: {error.detail}") from None
    except UnreadableError as error:
        raise ServiceError(400, str(error)) from None
