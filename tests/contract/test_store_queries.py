"""The rules of every store outside of transactions of chats, tested with both adapters."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from statemachine.events import (
    BuildCanceled,
    BuildFailed,
    BuildRequested,
    BuildStarted,
    BuildSucceeded,
    Data,
    TemplateRef,
    Transition,
)
from statemachine.lookups import Lookups
from statemachine.states import State
from statemachine.store import Changes, Credential
from statemachine.workspace import WorkspaceRecord
from tests.contract.stores import NOW, Shelf, entry, owned, uid, version, write


async def test_a_template_is_found_by_organization_and_by_id(shelf: Shelf) -> None:
    org, foreign = uid(), uid()
    mine, theirs = version(org), version(foreign)
    await shelf.store.templates.push(org, mine, b"")
    await shelf.store.templates.push(foreign, theirs, b"")

    listed = (await shelf.store.look_up(Lookups(frozenset({org})))).catalog
    named = (await shelf.store.look_up(Lookups(templates=frozenset({theirs.template_id})))).catalog
    older = (await shelf.store.look_up(Lookups(versions=frozenset({mine.id, uid()})))).catalog

    assert listed.templates.keys() == {mine.template_id}
    assert listed.templates[mine.template_id].active == mine
    assert listed.templates[mine.template_id].organization_id == org
    assert named.templates[theirs.template_id].organization_id == foreign
    assert (older.templates, older.versions) == ({}, {mine.id: mine})
    assert (await shelf.store.templates.catalog(org)).templates == listed.templates


async def test_the_version_pushed_last_is_the_active_one(shelf: Shelf) -> None:
    org = uid()
    first, second = version(org, archive=b"1"), version(org, archive=b"22")

    async def active() -> str:
        catalog = await shelf.store.templates.catalog(org)
        return catalog.templates[first.template_id].active.id

    await shelf.store.templates.push(org, first, b"1")
    await shelf.store.templates.push(org, first, b"1")
    assert await active() == first.id
    await shelf.store.templates.push(org, second, b"22")
    assert await active() == second.id
    await shelf.store.templates.push(org, first, b"1")
    assert await active() == first.id
    wanted = Lookups(frozenset({org}), versions=frozenset({second.id}))
    catalog = (await shelf.store.look_up(wanted)).catalog
    assert catalog.versions == {first.id: first, second.id: second}


async def test_an_earlier_version_can_be_made_the_active_one_again(shelf: Shelf) -> None:
    org, foreign = uid(), uid()
    first, second = version(org, archive=b"1"), version(org, archive=b"22")
    other = version(foreign)
    for pushed, archive in ((first, b"1"), (second, b"22"), (first, b"1"), (second, b"22")):
        await shelf.store.templates.push(org, pushed, archive)
    await shelf.store.templates.push(foreign, other, b"")

    moved = await shelf.store.templates.activate(first.id)
    history = await shelf.store.templates.versions(first.template_id)
    catalog = await shelf.store.templates.catalog(org)

    assert moved == first.template_id
    assert catalog.templates[first.template_id].active == first
    assert catalog.templates[first.template_id].organization_id == org
    assert [(p.version_id, p.size, p.active) for p in history] == [
        (first.id, 1, True),
        (second.id, 2, False),
    ]
    assert history[0].pushed_at <= history[1].pushed_at
    assert (await shelf.store.templates.catalog(foreign)).templates[
        other.template_id
    ].active == other


async def test_an_unknown_template_has_no_versions(shelf: Shelf) -> None:
    assert await shelf.store.templates.versions(uid()) == []
    assert await shelf.store.templates.activate(uid()) is None


async def test_pools_are_those_of_all_versions(shelf: Shelf) -> None:
    org = uid()
    assert await shelf.store.templates.pools() == set()

    for pool in ("local", "gpu", "gpu"):
        await shelf.store.templates.push(org, version(org, pool=pool), b"")

    assert await shelf.store.templates.pools() == {"local", "gpu"}


async def test_an_archive_is_read_in_pieces(shelf: Shelf) -> None:
    org, archive = uid(), bytes(range(256)) * 5
    pushed = version(org, archive=archive)
    await shelf.store.templates.push(org, pushed, archive)

    pieces = [
        await shelf.store.templates.read_archive(pushed.id, at, 500) for at in (0, 500, 1000, 1500)
    ]

    assert pieces == [archive[:500], archive[500:1000], archive[1000:], b""]
    assert await shelf.store.templates.read_archive(uid(), 0, 500) is None


async def test_a_changed_setting_is_read_at_once(shelf: Shelf) -> None:
    await shelf.store.put_setting("a", "1")
    await shelf.store.put_setting("b", "")
    await shelf.store.put_setting("a", "2")

    assert await shelf.store.settings() == {"a": "2", "b": ""}
    assert (await shelf.store.look_up(Lookups())).settings == {"a": "2", "b": ""}


async def test_a_credential_comes_back_with_the_reason_why_its_key_may_not_be_used(
    shelf: Shelf,
) -> None:
    later, past = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(hours=1)
    agent = Credential("agent", (uid(),), later, uid(), uid(), uid())
    frontend = Credential("frontend", (uid(), uid()), later)
    expired = Credential("frontend", (uid(),), past)

    await shelf.store.credentials.issue("A", agent)
    await shelf.store.credentials.issue("F", frontend)

    await shelf.store.credentials.issue("E", expired)

    assert await shelf.store.credentials.get("A") == (agent, "superseded")
    assert await shelf.store.credentials.get("F") == (frontend, None)
    assert await shelf.store.credentials.get("E") == (expired, "expired")
    assert await shelf.store.credentials.get("other") is None


async def test_issuing_a_key_again_replaces_its_credential(shelf: Shelf) -> None:
    first = Credential("frontend", (uid(),), NOW)
    second = Credential("frontend", (uid(),), NOW + timedelta(hours=1))

    await shelf.store.credentials.issue("A", first)
    await shelf.store.credentials.issue("A", second)

    assert await shelf.store.credentials.get("A") == (second, None)


async def test_chats_are_listed_by_filter_and_page(shelf: Shelf) -> None:
    org, other, ann, bob = uid(), uid(), uid(), uid()
    ids = sorted((uid() for _ in range(5)), key=lambda chat_id: UUID(chat_id).bytes)
    chats = [
        owned(ids[0], org, ann, state=State.READY),
        owned(ids[1], org, bob, state=State.BUILDING),
        owned(ids[2], other, ann, state=State.READY),
        owned(ids[3], org, ann, state=State.BUILD_FAILED),
        owned(ids[4], org, ann),
    ]
    await write(shelf.store, Changes(chats=chats))

    listed = shelf.store.chats.find
    assert await listed() == chats
    assert await listed(organization_id=org) == [chats[n] for n in (0, 1, 3, 4)]
    assert await listed(organization_id=org, owner_id=ann) == [chats[n] for n in (0, 3, 4)]
    assert await listed(states=[State.READY, State.BUILD_FAILED]) == [chats[n] for n in (0, 2, 3)]
    assert await listed(states=[]) == []
    assert await listed(organization_id=org, after=ids[1], limit=1) == [chats[3]]
    assert await listed(after=ids[4]) == []


async def test_chats_with_previous_workspaces_are_found_by_page(shelf: Shelf) -> None:
    org, ann = uid(), uid()
    ids = sorted((uid() for _ in range(4)), key=lambda chat_id: UUID(chat_id).bytes)
    gone, left, runs = (
        WorkspaceRecord(id=uid(), deleted=True),
        WorkspaceRecord(id=uid(), deleted=False),
        WorkspaceRecord(id=uid(), deleted=False, orphaned_at=NOW),
    )
    chats = [
        owned(ids[0], org, ann, previous=(gone, runs)),
        owned(ids[1], org, ann, previous=(gone,), deadline=NOW),
        owned(ids[2], org, ann, previous=(runs, left), current=WorkspaceRecord(id=left.id)),
        owned(ids[3], org, ann),
    ]
    await write(shelf.store, Changes(chats=chats))

    assert await shelf.store.chats.with_previous() == [chats[0], chats[2]]
    assert await shelf.store.chats.with_previous(limit=1) == [chats[0]]
    assert await shelf.store.chats.with_previous(after=ids[0]) == [chats[2]]
    assert await shelf.store.chats.with_previous(after=ids[2]) == []
    assert await shelf.store.chats.current_workspaces({left.id, runs.id}) == {left.id}
    assert await shelf.store.chats.current_workspaces(set()) == set()
    found = await shelf.store.look_up(Lookups(), {left.id, runs.id})
    assert found.current == {left.id}


async def test_build_times_are_grouped_by_template_and_transition(shelf: Shelf) -> None:
    """Three start builds of one template, one of them failed, a stop, and a build made elsewhere."""
    begin = NOW.replace(microsecond=0)
    template = TemplateRef(id=uid(), name="plain", version_id=uid(), pool="local")

    async def build(
        end: type[BuildSucceeded | BuildFailed | BuildCanceled],
        transition: Transition,
        took: float,
        *,
        requested: bool = True,
    ) -> None:
        ids: dict[str, Any] = {"workspace_id": uid(), "build_id": uid(), "build_number": 1}
        names = {"workspace_name": "w", "owner_name": "ann", "template": template}
        events: list[tuple[float, Data]] = [
            (2, BuildStarted(**ids, transition=transition)),
            (2 + took, end(**ids, transition=transition)),
        ]
        if requested:
            events.insert(0, (0, BuildRequested(**ids, **names, transition=transition)))
        chat = uid()
        entries = [
            (chat, entry(seq, chat, at=begin + timedelta(seconds=after), data=data))
            for seq, (after, data) in enumerate(events, 1)
        ]
        await write(shelf.store, Changes(entries=entries))

    for took in (10.0, 20.0):
        await build(BuildSucceeded, "start", took)
    await build(BuildFailed, "start", 1.0)
    await build(BuildCanceled, "stop", 1.0)
    await build(BuildSucceeded, "start", 5.0, requested=False)
    later = begin + timedelta(minutes=1)

    count, times = await shelf.store.statistics.build_times(begin, later, limit=100)
    newest, _ = await shelf.store.statistics.build_times(begin, later, limit=2)
    none = await shelf.store.statistics.build_times(later, later, limit=100)

    assert count == 5
    assert [asdict(one) for one in times] == [
        _times(
            "plain", "start", count=3, failed=1, median=15.0, p90=19.0, longest=20.0, queued=2.0
        ),
        _times("plain", "stop", canceled=1, queued=2.0),
        _times(None, "start", median=5.0, p90=5.0, longest=5.0),
    ]
    assert newest == 2
    assert none == (0, [])


def _times(template: str | None, transition: str, **more: float) -> dict[str, object]:
    nothing = dict.fromkeys(("median", "p90", "longest", "queued"))
    counts = {"count": 1, "failed": 0, "canceled": 0}
    return {"template": template, "transition": transition, **counts, **nothing, **more}
