"""The gateway's page in a real Chromium, over real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Request

from tests.rigs.browser import chromium, violations_of_accessibility
from tests.rigs.deployments import deployment, running, world
from tests.rigs.world import World

__all__ = ["deployment", "running", "world"]
WIDE = {"width": 1240, "height": 860}
PHONE = {"width": 390, "height": 844}


@dataclass
class Tab:
    """A tab of a browser, and everything that went wrong in it."""

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note errors, refused scripts and styles, and requests to other hosts."""

        def asked(request: Request) -> None:
            if not request.url.startswith(self.url):
                self.faults.append(f"asked for {request.url}")

        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on(
            "console",
            lambda line: (
                self.faults.append(line.text) if "Content Security Policy" in line.text else None
            ),
        )
        self.page.on("request", asked)

    async def open(self, view: str) -> None:
        """Open a view of the page by its address after #."""
        await self.page.goto(f"{self.url}/#{view}")

    async def shows(self, selector: str, text: str = "") -> None:
        """Wait until an element that contains the text is visible."""
        await self.page.locator(selector, has_text=text).first.wait_for(timeout=15_000)

    async def hides(self, selector: str) -> None:
        """Wait until no such element is visible."""
        await self.page.locator(selector).first.wait_for(state="hidden", timeout=15_000)

    async def texts(self, selector: str) -> list[str]:
        return await self.page.locator(selector).all_text_contents()

    async def is_accessible(self) -> None:
        """Fail if axe finds a violation, at both sizes and in both themes, or something is wider than the screen."""
        for size, theme in ((WIDE, "light"), (WIDE, "dark"), (PHONE, "light")):
            await self.page.set_viewport_size(size)
            await self.page.emulate_media(color_scheme=theme)
            found = await violations_of_accessibility(self.page)
            assert not found, (size, theme, found)
            assert await self.page.evaluate(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            ), f"wider than the screen at {size}"
        await self.page.set_viewport_size(WIDE)


OpenTab = Callable[..., Awaitable[Tab]]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest.fixture
async def open_tab(browser: Browser) -> AsyncIterator[OpenTab]:
    """Return a function that opens a link as a new user. Fails at the end if something went wrong in a tab."""
    tabs: list[Tab] = []
    async with AsyncExitStack() as stack:

        async def open_link(link: str, **options: Any) -> Tab:
            context = await browser.new_context(viewport=WIDE, **options)
            stack.push_async_callback(context.close)
            tab = Tab(await context.new_page(), link.split("/?", maxsplit=1)[0])
            tab.watch()
            tabs.append(tab)
            await tab.page.goto(link)
            return tab

        yield open_link
        assert not [fault for tab in tabs for fault in tab.faults]


@pytest.fixture
async def tab(world: World, open_tab: OpenTab) -> Tab:
    """A tab that is signed in as an operator."""
    return await open_tab((await world.operator.rpc("issue_page_code"))["page"])
