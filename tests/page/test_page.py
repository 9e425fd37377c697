"""The views of the gateway's page, as people use them."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from playwright.async_api import expect

from tests.page.conftest import OpenTab, Tab
from tests.rigs.browser import needs_chromium
from tests.rigs.client import Chat
from tests.rigs.messages import agent_entry, new_id
from tests.rigs.world import ORGANIZATION, World

pytestmark = needs_chromium

HOSTILE = (
    "<img src=x onerror=document.title='run'><script>document.title='run'</script>",
    "\x1b]8;;javascript:document.title='run'\x07click\x1b]8;;\x07",
    "\x1b[2K\x1b[1;31mred\x1b[0m \x1b[38;5;196mpalette\x1b[38;2;1;2;3mrgb\x1b[0m\x1b]0;title\x07",
    "\r10%\r50%\r100%",
    "\u202egnp.exe\u2066 \u200bhidden\x07\x08\x9b31m",
    "x" * 5000,
    "{{constructor.constructor('document.title=1')()}} javascript:alert(1)",
)


async def log_in_part(world: World, chat: Chat, job: object, count: int) -> None:
    for number in range(1, count + 1):
        await world.provisioner.log(job.data, number, f"line {number}\n")  # type: ignore[attr-defined]


async def test_a_link_opens_the_board_and_works_once(world: World, open_tab: OpenTab) -> None:
    link = (await world.operator.rpc("issue_page_code"))["page"]
    tab = await open_tab(link)

    await tab.shows("h1", "Chats")
    assert "code" not in tab.page.url
    assert await tab.page.evaluate("document.cookie") == ""
    other = await open_tab(link)
    await other.shows(".fault", "This link was used already")
    await other.is_accessible()
    token = await world.operator.rpc("issue_token", role="operator")
    await other.page.fill("#code", token["token"])
    await other.page.click("text=Sign in")
    await other.shows("h1", "Chats")
    await other.page.click("text=Sign out")
    await other.shows("label", "Code or token")


async def test_others_see_only_their_chats_and_change_nothing(
    world: World, open_tab: OpenTab
) -> None:
    chat, hidden = await world.chat(), await world.chat()
    await world.ready(chat)
    await world.ready(hidden)

    tab = await open_tab((await world.operator.rpc("issue_page_code", chat_ids=[chat.id]))["page"])

    await tab.shows(".pill.big", "Ready")
    assert chat.id in tab.page.url
    assert await tab.texts(".actions button") == []
    await tab.shows("[aria-label=Builds] tr", "succeeded")
    await tab.shows(".note", "the event log, are shown to operators only")
    await tab.shows(".note", "Commands that run in the workspace are not shown")
    assert await tab.page.locator("[aria-label='Event log']").count() == 0
    await tab.is_accessible()
    await tab.open(f"/chat/{hidden.id}")
    await tab.shows(".fault", "this token is not for chat")
    await tab.open("/operator")
    await tab.shows("h1", "Chats")


async def test_a_chat_token_sees_and_changes_its_chat_only(world: World, open_tab: OpenTab) -> None:
    chat = await world.chat()
    await world.ready(chat)
    token = await world.operator.rpc(
        "issue_token",
        role="chat",
        chat_ids=[chat.id],
        organization_id=chat.organization_id,
        owner_id=chat.owner_id,
        owner_name=chat.owner_name,
    )
    assert world.deployment.up
    tab = await open_tab(f"{world.deployment.up.http}/")
    await tab.page.fill("#code", token["token"])
    await tab.page.click("text=Sign in")

    await tab.shows(".pill.big", "Ready")
    await tab.shows(".note", "the event log, are shown to operators only")
    await tab.page.click(".actions >> text=Stop")
    await tab.shows(".pill.big", "Stopping")
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await tab.shows(".pill.big", "Stopped")
    await expect(tab.page.locator("[aria-label=Builds] tbody tr td:nth-child(3)")).to_have_text(
        ["succeeded", "succeeded"]
    )


async def test_a_workspace_is_kept_longer(world: World, tab: Tab) -> None:
    assert world.deployment.up
    world.deployment.up.run("settings", "set", "chat_workspace_ttl", "30m")
    try:
        chat = await world.chat()
        await world.ready(chat)
    finally:
        world.deployment.up.run("settings", "unset", "chat_workspace_ttl")
    await tab.open(f"/chat/{chat.id}")
    await tab.shows(".life", "Stops in 29 min")
    before = chat.now

    await tab.page.click("text=Keep for 2 hours")
    await tab.shows(".life", "Stops in 1 h 59 min")
    after = chat.now
    assert datetime.fromisoformat(after["stops_at"]) - datetime.fromisoformat(
        before["stops_at"]
    ) > timedelta(minutes=80)
    await tab.is_accessible()


async def test_the_board_follows_chats_and_finds_them(world: World, tab: Tab) -> None:
    chat, failing = await world.chat(), await world.chat()
    await tab.shows("h1", "Chats")
    _, job = await world.building(chat)
    name = job.workspace_name
    row = f".row:has-text('{name}')"
    await tab.shows(row, "Building")
    await tab.shows(row, "no provisioner of pool")
    await world.provisioner.publish_event("build_started", job)
    await tab.shows(row, "Build 1 is running")
    _, broken = await world.building(failing)
    await world.provisioner.fail(broken, "no disk left on <b>node 7</b>")
    bad = f".row.alert:has-text('{broken.workspace_name}')"
    await tab.shows(bad, "The build failed: no disk left on <b>node 7</b>")

    await tab.page.fill("#search", name.upper())
    await tab.shows(".count", "1 shown")
    await expect(tab.page.locator(".row")).to_have_count(1)
    await tab.page.fill("#search", "")
    await tab.page.select_option("select[aria-label=State]", "failed")
    await tab.shows(bad)
    await tab.hides(row)
    await tab.page.select_option("select[aria-label=State]", "")
    await tab.shows(row)
    await tab.is_accessible()

    await tab.page.focus(".row >> nth=0 >> a")
    await tab.page.keyboard.press("Home")
    await tab.page.keyboard.press("ArrowDown")
    assert await tab.page.evaluate("document.activeElement.closest('.row').place") == 1
    await tab.page.keyboard.press("Enter")
    await tab.shows(".back")


async def test_a_chat_is_followed_from_its_request_to_its_end(world: World, tab: Tab) -> None:
    chat = await world.chat()
    await tab.open(f"/chat/{chat.id}")
    await tab.shows(".pill.big", "No workspace")

    call, job = await world.building(chat)
    await tab.shows(".pill.big", "Building")
    await tab.shows(".calls", call)
    await world.provisioner.publish_event("build_started", job)
    for number in range(1, 4):
        await world.provisioner.log(job.data, number, f"line {number}\n")
    await tab.shows(".line", "line 3")
    await tab.page.reload()
    await tab.shows(".line", "line 3")
    await world.provisioner.log(job.data, 4, "\x1b[31mline 4\x1b[0m\nline 5\n")
    await tab.shows(".line .f-red", "line 4")
    await expect(tab.page.locator(".line")).to_have_text([f"line {n}" for n in range(1, 6)])
    await tab.shows(".phase.running .phasetime", "left")

    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    await tab.shows(".pill.big", "Connecting")
    agent = await world.agent(job, listed["id"])
    await agent.report_connected()
    await tab.shows(".pill.big", "Starting up")
    await agent.report_lifecycle("ready")
    await tab.shows(".pill.big", "Ready")
    await tab.hides(".calls")
    await expect(tab.page.locator(".phase.done")).to_have_count(3)
    await tab.shows("[aria-label=Builds] tbody tr", "succeeded")
    await tab.shows("[aria-label='Event log']", "Building → Connecting")
    await tab.shows("[aria-label='Event log']", "because of tool requested")
    await tab.is_accessible()


async def test_a_failure_is_explained(world: World, tab: Tab) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    await tab.open(f"/chat/{chat.id}")
    await world.provisioner.log(job.data, 1, "compiling\nerror: no such header\n")
    await tab.shows(".line", "no such header")
    await world.provisioner.fail(job, "make ended with status 2")

    await tab.shows(".failure h2", "The build failed")
    await tab.shows(".failure .message", "make ended with status 2")
    await tab.shows(".failure pre", "error: no such header")
    await tab.shows(".failure .next", "What to do")
    await tab.page.click(".actions >> text=Create anew…")
    await tab.shows("h1", "Create a workspace")
    assert chat.id in tab.page.url
    await tab.page.go_back()
    await tab.shows(".phase.failed", "Build")
    await tab.is_accessible()


async def test_a_workspace_is_stopped_started_canceled_kept_and_deleted(
    world: World, tab: Tab
) -> None:
    chat = await world.chat()
    await world.ready(chat)
    await tab.open(f"/chat/{chat.id}")

    await tab.page.click(".actions >> text=Stop")
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await tab.shows(".pill.big", "Stopped")
    await tab.page.click(".actions >> text=Start")
    job = await world.provisioner.job(chat, "start", 3)
    await tab.shows(".pill.big", "Building")
    await tab.page.click("text=Cancel build")
    await tab.shows(".pill.big", "Failed")
    await tab.shows(".failure h2", "The build was canceled")
    assert job.build_number == 3
    await tab.page.click("text=Delete…")
    await tab.shows("dialog", "can't be undone")
    await tab.is_accessible()
    await tab.page.click("dialog >> text=Keep it")
    await tab.hides("dialog")
    await tab.page.click("text=Delete…")
    await tab.page.click("dialog button.solid")
    await world.provisioner.succeed(await world.provisioner.job(chat, "delete"))
    await tab.shows(".pill.big", "No workspace")


async def test_a_workspace_is_created_from_a_template(world: World, tab: Tab) -> None:
    await tab.open("/create")
    await tab.page.click("summary")
    await tab.page.fill("#organization", ORGANIZATION)
    await tab.page.press("#organization", "Tab")
    await tab.page.check("input[type=radio] >> nth=1", force=True)
    await tab.shows("label", "branch")
    assert await tab.page.input_value("#p-word") == "preset"
    await tab.page.fill("#p-word", "NOT GOOD")
    await tab.page.fill("#p-size", "99")
    await tab.page.click("button[type=submit]")
    await tab.shows("#fault-word", "does not match")
    await tab.shows("#fault-size", "99")
    await tab.is_accessible()
    assert await tab.page.get_attribute("#p-size", "aria-invalid") == "true"

    await tab.page.fill("#p-word", "fine")
    await tab.page.fill("#p-size", "4")
    await tab.page.fill("#p-name", "made-here")
    await tab.page.click("button[type=submit]")
    await tab.shows("h1", "made-here")
    chat_id = tab.page.url.rpartition("/")[2]
    job = await world.provisioner.job(chat_id)
    assert job.parameters["word"] == "fine"
    assert job.parameters["size"] == "4"
    assert job.parameters["branch"] == "next"
    await world.provisioner.fail(job)


async def test_hostile_texts_run_nothing_and_break_no_layout(world: World, tab: Tab) -> None:
    chat = await world.chat()
    chat.owner_name = HOSTILE[0][:60]
    _, job = await world.building(chat)
    await world.provisioner.publish_event("build_started", job)
    for number, text in enumerate(HOSTILE, 1):
        await world.provisioner.log(job.data, number, text + "\n", stage=text[:60])
    await tab.open(f"/chat/{chat.id}")
    await tab.shows(".line", "javascript:alert(1)")
    await world.provisioner.fail(job, "\n".join(HOSTILE))
    await tab.shows(".failure .message")

    assert await tab.page.title() != "run"
    assert await tab.page.locator("main img, main script, main iframe, .line a").count() == 0
    lines = await tab.texts(".line")
    assert "click" in lines
    assert "100%" in lines
    shown = "".join(await tab.texts("main"))
    assert not [c for c in shown if c in "\x1b\x07\x08\u202e\u2066\u200b\x9b"]
    await tab.is_accessible()
    await tab.open("/")
    await tab.shows(".row.alert", "The build failed")
    assert await tab.page.title() != "run"
    await tab.is_accessible()


async def test_operators_see_what_is_wrong_and_what_waits(world: World, tab: Tab) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    await tab.open("/operator")

    await tab.shows("[aria-label=Pools] tr", "wire")
    await tab.shows("[aria-label='Waiting calls'] tr", "create_workspace")
    await tab.shows("[aria-label=Servers] tr", "postgresql")
    await tab.shows("[aria-label=Streams] tr", "WORKSPACED_STATE")
    await tab.is_accessible()
    await world.provisioner.fail(job)
    await chat.answer(call)
    await tab.shows("[aria-label='Build times'] tr", "plain")


async def test_search_pause_and_folds_of_a_log(world: World, tab: Tab) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    await tab.open(f"/chat/{chat.id}")
    await world.provisioner.log(job.data, 2, "compile 1\n", stage="start")
    await tab.shows(".line", "compile 1")
    await world.provisioner.log(job.data, 1, "clone 1\nclone 2\n", stage="prepare")
    await tab.shows("summary", "prepare")
    await tab.shows(".line", "compile 1")  # the later stage stays open
    assert await tab.texts(".stagename") == ["prepare", "start"]
    prepare = tab.page.locator("details.stage").first
    assert await prepare.get_attribute("open") is None
    await tab.page.fill("[aria-label='Search the log']", "CLONE")
    await tab.shows(".hits", "1 of 2")
    assert await prepare.get_attribute("open") is not None
    await tab.page.press("[aria-label='Search the log']", "Enter")
    await tab.shows(".hits", "2 of 2")

    await tab.page.click("text=Pause")
    await world.provisioner.log(job.data, 3, "compile 2\n", stage="start")
    await tab.shows(".logbar button", "Resume (1 new)")
    assert await tab.page.locator(".line", has_text="compile 2").count() == 0
    await tab.page.click("text=Resume")
    await tab.shows(".line", "compile 2")
    await world.provisioner.fail(job)


async def test_two_tabs_of_one_browser_see_the_same(world: World, tab: Tab) -> None:
    second = await tab.page.context.new_page()
    await second.goto(tab.url)
    chat = await world.chat()
    _, job = await world.building(chat)
    row = f".row:has-text('{job.workspace_name}')"

    await asyncio.gather(
        *(page.locator(row).wait_for(timeout=15_000) for page in (tab.page, second))
    )
    await world.provisioner.fail(job)


async def test_an_unknown_address_shows_the_board(tab: Tab) -> None:
    await tab.open(f"/nothing/{new_id()}")
    await tab.shows("h1", "Chats")
