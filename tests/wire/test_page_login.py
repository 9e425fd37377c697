"""How a browser signs in at the page, and what its cookie may do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.rigs.messages import new_id
from tests.rigs.processes import run
from tests.rigs.world import World

OWN = {"Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


class Browser:
    """Keeps the cookie as a browser does, and adds the headers that a browser adds."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url
        self.cookie: dict[str, str] = {}

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = OWN,
        **options: Any,
    ) -> Answer:
        sent = dict(headers)
        if self.cookie:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookie.items())
        async with self.session.request(
            method, f"{self.url}{path}", json=body, headers=sent, allow_redirects=False, **options
        ) as answer:
            body_read = await answer.read()
        for line in answer.headers.getall("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                self.cookie[name] = morsel.value
        return Answer(answer.status, answer.headers, body_read)

    async def open(self, link: str) -> Answer:
        parts = urlsplit(link)
        return await self.ask("GET", f"{parts.path}?{parts.query}", headers={})

    async def status(self, method: str, path: str, **options: Any) -> int:
        return (await self.ask(method, path, **options)).status


@pytest.fixture
async def browser(world: World) -> AsyncIterator[Browser]:
    assert world.deployment.up is not None
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        yield Browser(session, world.deployment.up.http)


async def link(world: World, *chats: str) -> dict[str, Any]:
    return dict(await world.operator.rpc("issue_page_code", chat_ids=list(chats) or None))


async def test_a_link_signs_a_browser_in_once(world: World, browser: Browser) -> None:
    issued = await link(world)

    first = await browser.open(issued["page"])

    assert first.status == 303
    assert first.headers["Location"] == "/"
    [cookie] = SimpleCookie(first.headers["Set-Cookie"]).values()
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == "/"
    assert cookie.key.endswith(str(urlsplit(browser.url).port))
    session = (await browser.ask("GET", "/page/session")).data
    assert session["role"] == "operator"
    assert session["id"] == issued["id"]
    assert await browser.status("GET", "/v1/chats") == 200
    browser.cookie.clear()
    second = await browser.open(issued["page"])
    assert second.status == 403
    assert "Set-Cookie" not in second.headers


async def test_of_two_browsers_that_open_a_link_at_once_one_is_signed_in(
    world: World, browser: Browser
) -> None:
    issued = await link(world)

    answers = await asyncio.gather(*(browser.open(issued["page"]) for _ in range(4)))

    assert sorted(answer.status for answer in answers) == [303, 403, 403, 403]


async def test_the_ready_line_of_up_names_the_page(world: World) -> None:
    up = world.deployment.up
    assert up is not None
    assert up.ready["page"].startswith(f"{up.http}/?code=")


async def test_the_command_prints_a_link(world: World, browser: Browser) -> None:
    up = world.deployment.up
    assert up is not None
    chat = await world.chat()

    done = await asyncio.to_thread(
        run, "page", "--chat", chat.id, "--data-dir", up.directory, "--url", browser.url + "/"
    )

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["role"] == "frontend"
    assert (await browser.open(printed["page"])).status == 303


async def test_a_code_is_no_token(world: World, browser: Browser) -> None:
    code = (await link(world))["code"]

    assert (
        await browser.status("GET", "/v1/chats", headers={"Authorization": f"Bearer {code}"}) == 401
    )


async def test_a_code_for_chats_shows_those_chats_only(world: World, browser: Browser) -> None:
    chat, other = await world.chat(), await world.chat()
    await browser.open((await link(world, chat.id))["page"])

    assert await browser.status("GET", f"/v1/chats/{chat.id}") == 200
    for method, path in (
        ("GET", "/v1/chats"),
        ("GET", f"/v1/chats/{other.id}"),
        ("GET", f"/v1/stream?chat={other.id}"),
        ("POST", f"/v1/chats/{chat.id}/keep"),
        ("DELETE", f"/v1/chats/{chat.id}/workspace"),
    ):
        assert await browser.status(method, path, headers={**OWN, "Origin": browser.url}) == 403


@pytest.mark.parametrize("role", ["operator", "frontend"])
async def test_a_token_signs_in_with_its_own_rights_until_it_is_revoked(
    world: World, browser: Browser, role: str
) -> None:
    chats = None if role == "operator" else [new_id()]
    issued = await world.operator.rpc("issue_token", role=role, chat_ids=chats)

    answer = await browser.ask("POST", "/page/login", {"code": issued["token"]})

    assert answer.status == 200
    assert answer.data["id"] == issued["id"]
    assert await browser.status("GET", "/page/session") == 200
    assert await browser.status("POST", "/page/logout") == 204
    signed_in = await browser.ask("POST", "/page/login", {"code": issued["token"]})
    assert signed_in.status == 200, "signing out keeps a token that was not made for the browser"
    await world.operator.rpc("revoke_token", id=issued["id"])
    assert await browser.status("GET", "/page/session") == 401


async def test_a_token_of_a_chat_service_signs_nobody_in(world: World, browser: Browser) -> None:
    issued = await world.operator.rpc("issue_token", role="chat-service")

    answer = await browser.ask("POST", "/page/login", {"code": issued["token"]})

    assert answer.status == 403
    assert "Set-Cookie" not in answer.headers


async def test_signing_out_ends_the_session(world: World, browser: Browser) -> None:
    await browser.open((await link(world))["page"])
    kept = dict(browser.cookie)

    assert await browser.status("POST", "/page/logout") == 204

    browser.cookie = kept
    assert await browser.status("GET", "/page/session") == 401
    assert await browser.status("GET", "/v1/chats") == 401


async def test_a_cookie_counts_only_for_the_servers_own_page(
    world: World, browser: Browser
) -> None:
    await browser.open((await link(world))["page"])
    keep = f"/v1/chats/{new_id()}/keep"

    async def posted(headers: Mapping[str, str]) -> int:
        return await browser.status("POST", keep, body={"seconds": 60}, headers=headers)

    assert await posted({"Sec-Fetch-Site": "same-site", "Origin": browser.url}) == 401
    assert await posted({"Sec-Fetch-Site": "cross-site"}) == 401
    assert await posted({"Sec-Fetch-Site": "none"}) == 401
    assert await posted({}) == 401
    assert await posted({"Origin": "http://localhost:1"}) == 403
    assert await browser.status("GET", "/v1/chats", headers={"Sec-Fetch-Site": "same-site"}) == 401
    assert await posted({"Origin": browser.url}) == 200
    assert await posted(OWN) == 200
    other = await browser.ask(
        "POST", "/page/login", {"code": "x"}, {"Sec-Fetch-Site": "cross-site"}
    )
    assert other.status == 403


async def test_the_page_is_served_with_a_strict_policy(browser: Browser) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page/main.js", "text/javascript"),
        ("/page/style.css", "text/css"),
    ):
        answer = await browser.ask("GET", path, headers={})
        assert answer.status == 200
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        again = await browser.ask("GET", path, headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status == 304
        assert not again.body


async def test_the_terminal_is_served_with_a_policy_of_its_own(browser: Browser) -> None:
    headers = (await browser.ask("GET", "/page/terminal.html", headers={})).headers

    policy = headers["Content-Security-Policy"]
    assert "script-src 'self'; style-src 'self'; connect-src 'self'" in policy
    assert "form-action 'none'; frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
    assert policy.endswith("sandbox allow-scripts allow-same-origin")
    assert "unsafe" not in policy
    assert headers["Permissions-Policy"].startswith("clipboard-read=(), clipboard-write=()")


async def test_only_files_of_the_page_are_served(browser: Browser) -> None:
    for path in ("/page/", "/page/none.js", "/page/../http.py", "/page/%2e%2e/http.py", "/page"):
        assert await browser.status("GET", path) in (401, 404)
    assert await browser.status("POST", "/page/main.js") == 405
    assert await browser.status("GET", "/page/login") == 404


async def test_bodies_of_a_login_that_cannot_be_read_are_refused(browser: Browser) -> None:
    for body in ([], "x", {"code": "x" * 5000}):
        assert await browser.status("POST", "/page/login", body=body) in (400, 413)


async def test_many_wrong_codes_are_refused_but_a_right_one_is_taken(
    world: World, browser: Browser
) -> None:
    answers = [await browser.status("GET", f"/?code={n}", headers={}) for n in range(15)]

    assert answers[0] == 403
    assert answers[-1] == 429
    assert (await browser.open((await link(world))["page"])).status == 303
