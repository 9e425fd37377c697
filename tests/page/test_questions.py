"""For each question of operators, one view of the page has the answer. Each test causes the situation first.

tests/cli/test_questions.py does the same for the commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.embedded import Servers
from tests.cli.template_folders import folder
from tests.page.conftest import OpenTab, Tab
from tests.rigs.browser import needs_chromium
from tests.rigs.client import Participant, connected, role_options
from tests.rigs.messages import new_id
from tests.rigs.servers import free_port
from tests.rigs.system import SLOW, System

pytestmark = needs_chromium


@pytest.fixture
def system(own_nats: Servers, database_url: str, tmp_path: Path) -> Iterator[System]:
    system = System(own_nats, database_url, tmp_path / "home")
    yield system
    system.close()


async def test_each_question_is_answered_in_the_situation_that_raises_it(
    system: System, tmp_path: Path, open_tab: OpenTab
) -> None:
    chat = new_id()
    serving = ("gateway", "--http-port", str(free_port()))
    smith = ("provisioner", "--name", "smith", "--pool", "garage")
    system.data("migrate")
    system.data("template", "push", folder(tmp_path, SLOW))
    with system.role(*serving) as gateway:
        tab = await open_tab(system.data("page")[0]["page"])

        # No worker runs: nothing is carried out.
        await tab.shows("#banner", "No worker runs")
        await tab.shows("#banner", "What to do: start one with workspaced worker")
        await tab.is_accessible()
        await tab.open("/operator")
        await tab.shows(".problems", "no worker runs")

        with system.role("worker", WORKSPACED_JOB_QUEUE="1"):
            # No provisioner serves the pool. The page notices without a refresh that a worker came.
            await tab.shows(".problems", "no provisioner serves it: the next build will wait")
            assert "no worker runs" not in (await tab.texts(".problems"))[0]
            await tab.shows("[aria-label='Dead letters']", "Nothing was thrown away")
            creating = system.begin("create", "slow", "--chat", chat, "--call-id", "c1")

            await the_queue_is_full_and_a_call_waits(tab)

            with system.role(*smith):
                await tab.shows(".line", "begun")
                await tab.hides(".held.wrong")

            # The provisioner died in a build.
            await tab.shows(".held.wrong", "1 build that one had begun is not going on")
            await tab.shows(".next", "start a provisioner: it takes over the builds")
            await tab.shows("nav .badge", "1")

            with system.role(*smith):
                await what_happened_to_the_chat(tab)
                assert creating.ended() == 1
                await what_was_thrown_away(tab, system, chat)

            # The gateway is gone, and comes back.
            gateway.kill()
            await tab.shows("#banner", "The gateway can't be reached; what you see is as of")
            await tab.shows("#banner", "start workspaced up, or workspaced gateway")
            await tab.shows(".live", "reconnecting")
            with system.role(*serving):
                await tab.shows(".live.live", "live")
                await tab.hides("#banner")
                await tab.shows(".problems", "no provisioner serves it: the next build will wait")


async def the_queue_is_full_and_a_call_waits(tab: Tab) -> None:
    """Its chat says that nobody serves the pool."""
    await tab.shows(".problems", "its queue is full: 1 build waits, and calls that need")
    await tab.shows(".problems", "raise WORKSPACED_JOB_QUEUE")
    await tab.shows("[aria-label='Waiting calls'] tr", "the end of build 1")
    await tab.open("/")
    await tab.shows(".row.alert", "Pool garage: no provisioner serves it: 1 build waits")
    await tab.page.click(".row a")
    await tab.shows(".held", "Pool garage: no provisioner serves it: 1 build waits")
    await tab.shows(".next", "workspaced provisioner --pool garage")


async def what_happened_to_the_chat(tab: Tab) -> None:
    """Its build is canceled; the build counts among those of its template."""
    await tab.hides(".held.wrong")
    await tab.page.click("text=Cancel build")
    await tab.shows(".failure h2", "The build was canceled")
    await tab.shows("[aria-label=Builds] tr", "canceled")
    await tab.shows("[aria-label='Event log'] tr", "Building → Failed")
    await tab.open("/operator")
    await tab.shows(".allwell", "All is well")
    await tab.shows("[aria-label='Build times'] tr", "slow")


async def what_was_thrown_away(tab: Tab, system: System, chat: str) -> None:
    """The operations follow: nobody has to reload them."""
    options = role_options(system.credentials, "operator")
    async with connected(Participant(), system.nats, **options) as operator:
        await operator.publish(f"workspaced.in.provisioner.{chat}.smith", b"{")
    await tab.shows("[aria-label='Dead letters'] tr", "not_json")
    await tab.shows(".problems", "see workspaced dead list")
