"""Takes screenshots of the page: `make screenshots`; with --all after a folder, of each view, theme and size."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
from pathlib import Path

from playwright.async_api import Page, expect

from tests.rigs.browser import chromium
from tests.rigs.messages import new_id
from tests.rigs.processes import Up, kill_processes, processes_using, run, up

WIDE, PHONE = {"width": 1240, "height": 780}, {"width": 390, "height": 800}
KEPT = ("board-light", "building-dark", "terminal-dark")
"""The pictures in docs/images."""
LONG_OWNER = "Hubert Blaine Wolfeschlegelsteinhausenbergerdorff Senior of Philadelphia"
PYTHON = """
name = "python"
display_name = "Python service"
description = "A repository with a virtual environment and its tests"
pool = "local"

[[parameter]]
name = "packages"
type = "number"
default = 2
validation_min = 0
validation_max = 300
description = "How many packages are installed"

[[parameter]]
name = "branch"
type = "string"
default = "main"
description = "Branch to check out"
options = [{ name = "Main", value = "main" }, { name = "Next", value = "next" }]

[build]
start = "./build.sh"

[[agent]]
name = "main"
startup_script = "echo hooks installed"
"""
BUILD = r"""#!/bin/sh
printf '\033[1mCloning shop\033[0m\n'
printf '\rReceiving objects: 40%%\rReceiving objects: 100%%, done.\n'
printf '\033[32m✓\033[0m checked out \033[36m%s\033[0m at 3f2c91d\n' "$WORKSPACED_PARAM_BRANCH"
n=0
while [ $n -lt "$WORKSPACED_PARAM_PACKAGES" ]; do
    n=$((n+1)); printf 'Installing \033[33mpackage-%s\033[0m (%s/%s)\n' $n $n "$WORKSPACED_PARAM_PACKAGES"; sleep 0.2
done
if [ -n "$FAIL" ]; then
    printf '\033[31merror:\033[0m Could not find a version that satisfies numpy==9.9\n' >&2
    printf '\033[31merror:\033[0m No matching distribution found for numpy==9.9\n' >&2
    exit 1
fi
printf '\033[32m✓\033[0m done\n'
"""
IN_TERMINAL = (
    "cd /usr/share/doc && ls --color=always -C -w 44 | tail -n 12",
    "printf '\\033[32m✓\\033[0m %s\\n' 'hooks installed' '42 tests passed'",
    "git diff --no-index --color=always /etc/issue /etc/issue.net",
)


def push(running: Up, home: Path, name: str, fail: str, pool: str = "local") -> None:
    folder = home / name
    folder.mkdir()
    text = PYTHON.replace('"python"', f'"{name}"').replace('"local"', f'"{pool}"')
    if fail:
        text = text.replace("Python service", "Billing").replace("A repository", "The old one")
    (folder / "template.toml").write_text(text)
    (folder / "build.sh").write_text(BUILD.replace("$FAIL", fail))
    (folder / "build.sh").chmod(0o755)
    running.data("template", "push", folder)


async def begin(running: Up, *words: str) -> None:
    """Create a workspace whose build goes on while the pictures are taken."""
    await asyncio.to_thread(run, *words, "--data-dir", running.directory, patience=240)


async def take(page: Page, name: str, folder: Path, *, whole: bool = False) -> None:
    """Write a picture: of what is in the window or, of views that are not in docs/images, of the whole page."""
    await page.wait_for_timeout(400)
    await page.screenshot(path=folder / f"{name}.png", full_page=whole and name not in KEPT)


async def both_sizes(page: Page, name: str, folder: Path) -> None:
    for size, suffix in ((WIDE, ""), (PHONE, "-phone")):
        await page.set_viewport_size(size)
        await take(page, f"{name}{suffix}", folder, whole=True)
    await page.set_viewport_size(WIDE)


async def take_view(page: Page, name: str, folder: Path, *, everything: bool) -> None:
    """Write the pictures of a view, of both sizes, that are wanted."""
    if name.startswith("terminal"):
        await type_into_terminal(page)
    if name.startswith("create"):
        await page.locator(".template", has_text="Python").first.click()
    await page.wait_for_timeout(600)
    for size, suffix in ((WIDE, ""), (PHONE, "-phone")):
        if everything or f"{name}{suffix}" in KEPT:
            await page.set_viewport_size(size)
            await take(page, f"{name}{suffix}", folder, whole=True)
    if name.startswith("terminal"):
        await page.click("text=End shell")
        await page.locator(".notice", has_text="The shell").wait_for()


async def empty(page: Page, running: Up, folder: Path) -> None:
    """Take pictures of the page before anybody has signed in, and before there is a template."""
    await page.goto(running.http)
    await page.locator(".signin").wait_for()
    await both_sizes(page, "signin-light", folder)
    await page.goto((await asyncio.to_thread(running.data, "page"))["page"])
    for name, view in (("empty-board-light", ""), ("empty-create-light", "create")):
        await page.goto(f"{running.http}/#/{view}")
        await both_sizes(page, name, folder)


async def rarer(page: Page, running: Up, ready: str, folder: Path) -> None:
    """Take pictures of a question, of what others may see, and of the page without its gateway."""
    await page.emulate_media(color_scheme="light")
    await page.goto(f"{running.http}/#/chat/{ready}")
    await page.locator("text=Delete…").click()
    await both_sizes(page, "delete-light", folder)
    await page.locator("dialog >> text=Keep it").click()
    others = await page.context.browser.new_page(viewport=WIDE)  # type: ignore[union-attr]
    code = await asyncio.to_thread(running.data, "page", "--chat", ready)
    await others.goto(code["page"])
    await others.locator(".note").wait_for()
    await both_sizes(others, "frontend-light", folder)
    running.process.send(signal.SIGKILL)
    await page.locator("#banner").wait_for()
    await both_sizes(page, "gateway-gone-light", folder)


async def type_into_terminal(page: Page) -> None:
    """Run commands in the terminal that the page shows, and wait for their output."""
    for count, command in enumerate(("PS1='mail $ '; clear", *IN_TERMINAL)):
        prompts = page.locator(".rows .tline", has_text=re.compile("^mail [$]"))
        await expect(prompts).to_have_count(count)
        if count == 0:
            await page.locator(".tline", has_text=re.compile("[$#] *$")).first.wait_for()
        await page.keyboard.type(command)
        await page.keyboard.press("Enter")
    await expect(prompts).to_have_count(count + 1)


async def screenshots(home: Path, folder: Path, *, everything: bool) -> None:
    """Run workspaces, and write pictures: those that the documents show, or one of each view, theme and size."""
    folder.mkdir(exist_ok=True)
    with up(home / "data") as running:
        async with chromium() as browser:
            if everything:
                await empty(await browser.new_page(viewport=WIDE), running, folder)
        push(running, home, "python", "")
        push(running, home, "billing", "yes")
        if everything:
            push(running, home, "mobile", "", pool="macs")

        async def create(template: str, name: str, owner: str, *more: str) -> str:
            chat = new_id()
            words = ("create", template, "--chat", chat, "--name", name, "--owner-name", owner)
            await asyncio.to_thread(running.run, *words, *more)
            return chat

        for name, owner in (("shop", "ada"), ("search", "grace"), ("mail", "linus")):
            ready = await create("python", name, owner)
        failed = await create("billing", "billing", "barbara")
        if everything:
            await create("python", "the-longest-name-that-is-allowed", LONG_OWNER)
        building = new_id()
        words = ("create", "python", "--chat", building, "--name", "docs", "-p", "packages=290")
        background = asyncio.create_task(begin(running, *words, "--owner-name", "margaret"))
        waiting = new_id()
        words = ("create", "mobile", "--chat", waiting, "--name", "app", "--owner-name", "alan")
        queued = asyncio.create_task(begin(running, *words)) if everything else None
        async with chromium() as browser:
            page = await browser.new_page(viewport=WIDE)
            link = await asyncio.to_thread(running.data, "page")
            await page.goto(link["page"])
            await page.locator(".row", has_text="docs").wait_for()
            views = {
                "board": "#/",
                "building": f"#/chat/{building}",
                "failed": f"#/chat/{failed}",
                "ready": f"#/chat/{ready}",
                "waiting": f"#/chat/{waiting}",
                "create": "#/create",
                "operations": "#/operator",
                "terminal": f"page/terminal.html#{ready}",
            }
            for theme in ("light", "dark"):
                await page.emulate_media(color_scheme=theme)
                for name, view in views.items():
                    await page.set_viewport_size(WIDE)
                    await page.goto(f"{running.http}/{view}")
                    await take_view(page, f"{name}-{theme}", folder, everything=everything)
            await page.goto(f"{running.http}/#/chat/{building}")
            await page.locator("text=Cancel build").click()
            await page.locator(".pill.big", has_text="Failed").wait_for()
            await background
            if queued:
                await asyncio.to_thread(running.run, "build", "cancel", waiting)
                await queued
                await rarer(page, running, ready, folder)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    with tempfile.TemporaryDirectory(prefix="workspaced-screenshots-") as directory:
        try:
            asyncio.run(screenshots(Path(directory), target, everything="--all" in sys.argv))
        finally:
            kill_processes(processes_using(Path(directory)))  # agents outlive `up`
