"""How fast the page is with 10,000 chats: `make page-speed`.

Measured in the browser: the time from a state change to its pixels, and the frames per second while the board scrolls
and 100 states a second arrive. Exits with status 1 if the median of the first is 50 ms or more, or if there are fewer
than 30 frames per second.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from playwright.async_api import Page

from tests.rigs.browser import chromium
from tests.rigs.messages import new_id
from tests.rigs.processes import up
from tests.rigs.world import World, connected_world, deployment_of

CHATS = 10_000
STATES_PER_SECOND = 100
SECONDS = 10.0
CHANGES = 60
WATCH_PILL = """() => {
  window.drawn = [];
  const pill = document.querySelector(".pill.big");
  new MutationObserver(() => requestAnimationFrame(() => setTimeout(() =>
    window.drawn.push([pill.textContent, performance.timeOrigin + performance.now()])
  ))).observe(pill, { childList: true, characterData: true, subtree: true });
}"""
SCROLL = """async (seconds) => {
  const table = document.querySelector(".table");
  const frames = [];
  const end = performance.now() + seconds * 1000;
  let last = performance.now();
  for (let at = 0; last < end; at++) {
    table.scrollTop = (at * 37) % (table.scrollHeight - table.clientHeight);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
  }
  return frames;
}"""


def elsewhere(chat_id: str, number: int = 1, **more: Any) -> dict[str, Any]:
    """Return a build that somebody else made, in a workspace of the chat's own."""
    return {
        "chat_id": chat_id,
        "workspace_id": chat_id[:-1] + ("0" if chat_id[-1] != "0" else "1"),
        "build_id": new_id(),
        "build_number": number,
        "transition": "start",
        **more,
    }


async def latency(world: World, page: Page, url: str) -> list[float]:
    """Return how many milliseconds after each change of a chat's state its label was drawn."""
    chat = await world.chat()
    await page.goto(f"{url}/#/chat/{chat.id}")
    await page.locator(".pill.big", has_text="No workspace").wait_for()
    await page.evaluate(WATCH_PILL)
    build = elsewhere(chat.id)
    for number in range(1, CHANGES + 1):
        build |= {"build_id": new_id(), "build_number": number}
        before = len(chat.states.all)
        started = await chat_moves(world, build, "build_started")
        await chat.states.count(before + 1)
        await world.provisioner.publish_event("build_failed", started, error="no")
        await chat.states.count(before + 2)
        await asyncio.sleep(0.05)
    drawn = await page.evaluate("window.drawn")
    changes = [
        (state["data"]["state"], 1000 * _seconds(state["time"])) for state in chat.states.all
    ]
    found = []
    for text, at in drawn:
        state = {"Building": "building", "Failed": "failed"}.get(text)
        earlier = [when for name, when in changes if name == state and when <= at]
        if earlier:
            found.append(at - earlier[-1])
    return found


async def chat_moves(world: World, build: dict[str, Any], kind: str) -> dict[str, Any]:
    await world.provisioner.publish_event(kind, build)
    return build


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def frames(world: World, page: Page, url: str) -> list[float]:
    """Return how long each frame took while the board scrolled and states arrived, in milliseconds."""
    chats = [new_id() for _ in range(CHATS)]
    for number, chat_id in enumerate(chats):
        build = elsewhere(
            chat_id, workspace_name=f"shop-{number}", owner_name=f"user-{number % 90}"
        )
        await world.provisioner.publish_event("build_started", build)
    await page.goto(f"{url}/#/")
    await page.locator(".count", has_text=f"{CHATS + 1:,}").wait_for(timeout=180_000)
    await page.locator(".count", has_text="loading").wait_for(state="detached", timeout=180_000)

    async def change() -> None:
        begun, sent = time.monotonic(), 0
        while True:
            build = elsewhere(chats[sent % CHATS], 2 + sent // CHATS)
            await world.provisioner.publish_event("build_started", build)
            sent += 1
            await asyncio.sleep(max(0.0, begun + sent / STATES_PER_SECOND - time.monotonic()))

    changing = asyncio.create_task(change())
    await asyncio.sleep(1)
    try:
        return list(await page.evaluate(SCROLL, SECONDS))
    finally:
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)


async def measure(home: Path) -> bool:
    """Measure and print; return whether the page is fast enough."""
    with up(home / "data") as running:
        async with connected_world(deployment_of(running, home)) as world, chromium() as browser:
            page = await browser.new_page(viewport={"width": 1240, "height": 860})
            await page.goto((await world.operator.rpc("issue_page_code"))["page"])
            await page.locator("h1", has_text="Chats").wait_for()
            delays = await latency(world, page, running.http)
            took = await frames(world, page, running.http)
    median, rate = statistics.median(delays), 1000 * len(took) / sum(took)
    slow = statistics.quantiles(took, n=20)[-1]
    sys.stdout.write(
        f"from a state change to its pixels: median {median:.0f} ms, "
        f"95 % within {statistics.quantiles(delays, n=20)[-1]:.0f} ms ({len(delays)} changes)\n"
        f"scrolling {CHATS:,} chats while {STATES_PER_SECOND} states a second arrive: "
        f"{rate:.0f} frames a second, 95 % of them within {slow:.0f} ms\n"
    )
    return median < 50 and rate >= 30


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="workspaced-page-speed-") as directory:
        sys.exit(0 if asyncio.run(measure(Path(directory))) else 1)
