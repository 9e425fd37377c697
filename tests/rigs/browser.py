"""A real Chromium for the tests of pages, driven by Playwright.

Chromium is Debian's package (`apt-get install chromium`); Playwright's own download is not used.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, Page, async_playwright, expect

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium: apt-get install chromium"
)
expect.set_options(timeout=15_000)  # a busy machine is slow
_FLAGS = (
    "--no-sandbox",  # Chromium's own sandbox does not start as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a headless Chromium. It starts in about a second; each of its contexts is a fresh user."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*_FLAGS])
        try:
            yield browser
        finally:
            await browser.close()


async def violations_of_accessibility(page: Page) -> list[str]:
    """Return what axe finds wrong on the page: a line for each rule, with the elements."""
    await page.evaluate(AXE_SCRIPT)
    found: dict[str, Any] = await page.evaluate("axe.run()")
    return [
        f"{rule['id']}: {rule['help']}: " + " ".join(str(node["target"]) for node in rule["nodes"])
        for rule in found["violations"]
    ]
