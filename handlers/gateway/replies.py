"""The replies of the gateway's rpcs, as types. Those of the tools are `ToolResolved`.

docs/schemas is made from these types: run `make schemas` after a change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired

# pydantic reads TypedDicts of `typing` only from Python 3.12 on.
from typing_extensions import TypedDict

from handlers.gateway.requests import IssuableRole, TokenRole
from statemachine.events import Id, Token
from statemachine.exec_tools import ExecError, ExecResult
from statemachine.messages import IgnoredKeys, LogEntry, LogLine, StateChanged, Timestamp


def naming_ignored(reply: Mapping[str, object], names: Sequence[str]) -> Mapping[str, object]:
    """Return the reply with these keys of the request added to those that it names as ignored."""
    if not names:
        return reply
    known = reply.get("ignored", ())
    assert isinstance(known, list | tuple)  # noqa: S101 — for mypy
    return {**reply, "ignored": list(dict.fromkeys((*known, *names)))}


class CanceledCall(IgnoredKeys):
    """The reply of `cancel`."""

    canceled: bool
    """True: the call was open, or will be ended when its request arrives. False: it was answered."""


class CanceledBuild(IgnoredKeys):
    """The reply of `cancel_build`."""

    canceled: bool
    """True: the build was in flight, and it is asked for that it ends; the state tells what comes of it.
    False: no build is in flight, or another one than the one named."""
    build_id: NotRequired[Id]
    """The build that was canceled."""


class ExecResolved(IgnoredKeys):
    """The reply of an rpc that runs a command or uses files in a workspace."""

    call_id: Token
    tool: str
    is_error: bool
    """If true, `result` says what is wrong with the call, or which tool to call before it."""
    result: ExecResult | ExecError


class ChatDetails(TypedDict):
    """What a page shows of a chat beside its state."""

    changed_at: Timestamp | None
    """When the chat got this version; null at version 0."""
    template_name: str | None
    """Null if the workspace's template is not known."""
    organization_id: Id | None
    """The organization and the owner of the chat's calls; null before the first one."""
    owner_id: Id | None
    owner_name: str | None


class ShownChat(StateChanged):
    """The state of a chat, as `get_chat` and `list_chats` return it."""

    details: NotRequired[ChatDetails]
    """Only if the request asked for them."""
    notice: NotRequired[str]
    """Text for people: the reason why the chat is delayed, or the parts of a message that were discarded."""


class OpenCall(TypedDict):
    """A call that waits for its answer."""

    call_id: str
    tool: str
    asked_at: Timestamp


class ChatWithCalls(ShownChat, IgnoredKeys):
    """The reply of `get_chat`; a chat that workspaced has not heard of is in state `none`, version 0."""

    open_calls: list[OpenCall]


class ChatsPage(IgnoredKeys):
    """The reply of `list_chats`."""

    chats: list[ShownChat]
    next: NotRequired[Id]
    """Absent on the last page; otherwise the `cursor` of the next request."""


class KeptWorkspace(IgnoredKeys):
    """The reply of `keep`."""

    stops_at: Timestamp | None
    """When the workspace is stopped if nobody uses it until then; null if it does not run, or has no lifetime."""


class Orphan(TypedDict):
    """A workspace that exists, or may exist, and belongs to no chat."""

    id: Id
    name: str | None
    """Null if no fact reported it."""
    owner_name: str | None
    """Null if no fact reported it."""
    chat_id: Id
    """The chat that had the workspace, or on whose subjects it was reported."""
    pool: str | None
    """Null if it is not known: then workers can neither stop nor delete the workspace."""
    state: Literal["building", "running", "stopping", "stopped", "failed"]
    """What the newest build has left: `failed` after a start or delete that did not succeed, `stopping` while workers
    stop or delete it."""
    since: Timestamp | None
    """Since when it is in this state; null if no build of it is known."""
    build_id: Id | None
    """The newest build that is known."""
    build_number: int | None


class OrphansPage(IgnoredKeys):
    """The reply of `list_orphans`."""

    workspaces: list[Orphan]
    next: NotRequired[Id]
    """Absent on the last page; otherwise the `cursor` of the next request."""


class LinesPage(IgnoredKeys):
    """The reply of `read_log`."""

    lines: list[LogLine]
    next: NotRequired[int]
    """Absent if no more lines are stored; otherwise the `after` of the next request."""


class EventsPage(IgnoredKeys):
    """The reply of `read_events`."""

    events: list[LogEntry]
    next: NotRequired[int]
    """Absent on the last page; otherwise the `after` of the next request."""


class Key(TypedDict):
    """A new key, the reply of `agent_credential` and `frontend_credential`."""

    seed: str
    """The seed of the NKey. workspaced does not keep it."""
    inbox_prefix: str
    """The inbox prefix with which a client must connect."""
    expires_at: Timestamp


class FrontendKey(Key):
    """The reply of `frontend_credential`."""

    public_key: str
    """Names the key to `revoke_credential`."""


class IssuedKey(Key):
    """The reply of `issue_credential`."""

    public_key: str
    role: IssuableRole


class ListedKey(TypedDict):
    """A key that was issued."""

    public_key: str
    role: str
    """One of the roles of `issue_credential`, or `agent`."""
    name: NotRequired[str]
    pool: NotRequired[str]
    chat_ids: NotRequired[list[Id]]
    """The chats that the key is for; absent: it is for all chats."""
    workspace_id: NotRequired[Id]
    build_id: NotRequired[Id]
    agent_id: NotRequired[Id]
    issued_at: Timestamp
    expires_at: Timestamp
    revoked_at: NotRequired[Timestamp]
    connections: int
    """Connections that are open, as far as workspaced knows."""
    exec: NotRequired[bool]
    """Whether a chat service may run commands, or a frontend sees those that run."""
    superseded: NotRequired[Literal[True]]
    """The key of an agent whose build is no longer the chat's newest."""


class KeysPage(IgnoredKeys):
    """The reply of `list_credentials`."""

    credentials: list[ListedKey]
    next: NotRequired[str]
    """Absent on the last page; otherwise the `cursor` of the next request."""


class RevokedKey(IgnoredKeys):
    """The reply of `revoke_credential`."""

    public_key: str
    revoked: Literal[True]
    connections_ended: int
    connections_unreachable: int
    """Connections on servers that did not answer. They may be open: repeat the request."""


class IssuedToken(TypedDict):
    """The reply of `issue_token`."""

    token: str
    """The bearer token. workspaced does not keep it."""
    id: Id
    """Identifies the token in `list_tokens` and `revoke_token`."""
    role: TokenRole
    expires_at: Timestamp


class PageCode(TypedDict):
    """The reply of `issue_page_code`."""

    code: str
    """Signs a browser in once, at any gateway."""
    page: NotRequired[str]
    """The link to open in a browser; absent if the gateway that answers serves no page."""
    id: Id
    """Identifies the code, and later the browser's session, in `list_tokens` and `revoke_token`."""
    role: TokenRole
    expires_at: Timestamp
    """The end of the code; the session then lasts 12 hours."""


class ShownToken(IgnoredKeys):
    """The rights of a token, as `list_tokens` and `check_token` return them."""

    id: Id
    role: TokenRole
    chat_ids: list[Id]
    """The chats that it is for; empty for roles that may use all of them."""
    organization_id: Id | None
    owner_id: Id | None
    owner_name: str | None
    exec: bool
    """Whether the holder may run commands; for a frontend: whether it sees them."""
    created_at: Timestamp
    expires_at: Timestamp


class TokensPage(IgnoredKeys):
    """The reply of `list_tokens`."""

    tokens: list[ShownToken]
    next: NotRequired[Id]
    """Absent on the last page; otherwise the `cursor` of the next request."""


class RevokedToken(IgnoredKeys):
    """The reply of `revoke_token`."""

    revoked: bool
    """False: there is no such valid token."""


class WaitingCall(TypedDict):
    """A call that waits for its answer."""

    chat_id: Id
    call_id: str
    tool: str
    asked_at: Timestamp
    state: str
    """The state of its chat."""
    waits_for: str
    """Text for people: what has to happen before it is answered."""
    deadline: Timestamp | None
    """When the limit of that state passes; null if it has none."""


class CallsPage(IgnoredKeys):
    """The reply of `list_calls`."""

    calls: list[WaitingCall]
    next: NotRequired[str]
    """Absent on the last page; otherwise the `cursor` of the next request."""


class TemplateTimes(TypedDict):
    """How long the builds of a template with one transition took. Times are in seconds."""

    template: str | None
    """The template's name; null for builds that workspaced did not request."""
    transition: Literal["start", "stop", "delete"]
    count: int
    failed: int
    canceled: int
    median: float | None
    """From the begin to the end, of those that succeeded; null if none did."""
    p90: float | None
    longest: float | None
    queued: float | None
    """The median from the request to the begin; null if no provisioner began one."""


class BuildTimesReply(IgnoredKeys):
    """The reply of `build_times`."""

    since: Timestamp
    until: Timestamp
    builds: int
    """How many builds these figures are of."""
    complete: bool
    """False: more builds ended in the period, and the figures are of the newest 10,000."""
    templates: list[TemplateTimes]
