"""The contract of `Store.tokens`, on PostgreSQL and on its double."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from statemachine.store import Token
from tests.contract.stores import Shelf
from tests.unit.facts import uid

ROLES = ("operator", "chat-service", "chat", "frontend")


def token(name: str, role: str = "frontend", *, hours: float = 1.0) -> Token:
    now = datetime.now(UTC)
    return Token(
        id=uid(f"token {name}"),
        role=role,
        exec=False,
        created_at=now,
        expires_at=now + timedelta(hours=hours),
        chat_ids=(uid("chat"),),
        organization_id=uid("organization"),
        owner_id=uid("owner"),
        owner_name="ann",
    )


async def test_a_token_is_found_by_its_digest(shelf: Shelf) -> None:
    issued = token("a")
    await shelf.store.tokens.issue(b"digest", issued)

    found = await shelf.store.tokens.find(b"digest")

    assert found is not None
    assert replace(found, created_at=issued.created_at) == issued
    assert await shelf.store.tokens.find(b"other") is None


async def test_a_revoked_token_is_not_found(shelf: Shelf) -> None:
    issued = token("a")
    await shelf.store.tokens.issue(b"digest", issued)

    assert not await shelf.store.tokens.revoke(issued.id, ("operator",))
    assert await shelf.store.tokens.revoke(issued.id, ROLES)
    assert not await shelf.store.tokens.revoke(issued.id, ROLES)

    assert await shelf.store.tokens.find(b"digest") is None
    assert await shelf.store.tokens.page(ROLES) == []


async def test_an_expired_token_is_not_found(shelf: Shelf) -> None:
    await shelf.store.tokens.issue(b"digest", token("a", hours=-1))

    assert await shelf.store.tokens.find(b"digest") is None
    assert await shelf.store.tokens.page(ROLES) == []


async def test_a_token_is_exchanged_once(shelf: Shelf) -> None:
    issued = token("a")
    await shelf.store.tokens.issue(b"code", issued)
    end = issued.expires_at + timedelta(hours=3)

    found = await shelf.store.tokens.exchange(b"code", b"session", end)

    assert found is not None
    assert replace(found, created_at=issued.created_at) == replace(issued, expires_at=end)
    assert await shelf.store.tokens.exchange(b"code", b"other", end) is None
    assert await shelf.store.tokens.find(b"code") is None
    assert await shelf.store.tokens.find(b"session") == found


async def test_a_token_that_expired_is_not_exchanged(shelf: Shelf) -> None:
    await shelf.store.tokens.issue(b"code", token("a", hours=-1))

    assert await shelf.store.tokens.exchange(b"code", b"session", token("a").expires_at) is None


async def test_tokens_of_some_roles_are_listed_page_by_page(shelf: Shelf) -> None:
    issued = [token(name) for name in "abc"]
    for number, one in enumerate(issued):
        await shelf.store.tokens.issue(bytes([number]), one)
    await shelf.store.tokens.issue(b"operator's", token("d", "operator"))
    ids = sorted(one.id for one in issued)

    first = await shelf.store.tokens.page(["frontend"], limit=2)
    second = await shelf.store.tokens.page(["frontend"], after=first[-1].id, limit=2)

    assert [one.id for one in (*first, *second)] == ids
