"""The terminal of the page: a shell in a workspace with a real agent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from playwright.async_api import Page, expect

from tests.cli.template_folders import folder
from tests.page.conftest import PHONE, WIDE, OpenTab, Tab
from tests.rigs.browser import needs_chromium
from tests.rigs.messages import new_id
from tests.rigs.processes import Up
from tests.rigs.world import ORGANIZATION, Deployment, World

pytestmark = needs_chromium

TEMPLATE = """
name = "shell"
pool = "local"

[build]
start = "true"

[[agent]]
name = "main"
env = { SHELL = "/bin/sh", PS1 = "$ " }
"""
HOSTILE = "".join(
    (
        "\x1b]52;c;ZXZpbA==\x07\x1b]0;owned\x07\x1b]8;;javascript:document.title='run'\x07click\x1b]8;;\x07\n",
        "\x1bP+q544e\x1b\\\x1b_apc\x1b\\\x1b^pm\x1b\\\x9b31mred\x9d0;owned\x9c\x1b[21t\x1b[6n\x1b[c\x1b[>c\n",
        "<img src=x onerror=document.title='run'><script>document.title='run'</script>\u202egpj.exe\n",
        "\x1b[99999999999;9999999999H\x1b[9999999999S\x1b[1;1H\x1b[" + "1;" * 5000 + "m",
        "x" * 200_000 + "\x1b]0;" + "y" * 70_000 + "\n",
    )
)


SCREENS = (  # what is written to a screen of 8 columns and 3 rows, and its lines
    ("one\r\ntwo\rT", ["one", "Two", ""]),
    ("12345678", ["12345678", "", ""]),
    ("123456789", ["12345678", "9", ""]),
    ("\x1b[?7l123456789", ["12345679", "", ""]),
    ("a\r\nb\r\nc\r\nd", ["b", "c", "d"]),
    ("a\r\nb\r\nc\x1b[1;2r\x1b[2;1H\nd", ["b", "d", "c"]),
    ("a\r\nb\r\nc\x1b[2;1H\x1b[L", ["a", "", "b"]),
    ("a\r\nb\r\nc\x1b[1;1H\x1b[M", ["b", "c", ""]),
    ("a\r\nb\r\nc\x1b[H\x1bM", ["", "a", "b"]),
    ("abcdef\x1b[3D\x1b[2P|", ["abc|", "", ""]),
    ("abcdef\x1b[3D\x1b[2@|", ["abc| def", "", ""]),
    ("abcdef\x1b[1;3H\x1b[2X", ["ab  ef", "", ""]),
    ("abcdef\x1b[3D\x1b[1K\x1b[2;2Hx\x1b[1J", ["", "", ""]),
    ("ab\x1b7cd\x1b[3;3He\x1b8X", ["abXd", "", "  e"]),
    ("\x1b[4G\x1bH\ra\tb\x1b[3g\tc", ["a  b   c", "", ""]),
    ("a\x1b[4hb\x1b[1Gc", ["cab", "", ""]),
    ("表e\u0301\x1b[1;2Hx", [" xe\u0301", "", ""]),
    ("1234567表", ["1234567", "表", ""]),
    ("a\x1b[3b", ["aaaa", "", ""]),
    ("\x1b(0qx\x1b(Bq\x0eq", ["─│qq", "", ""]),
    ("a\x1b[?1049hb\x1b[?1049lc", ["ac", "", ""]),
    ("a\x1b]0;b\x1b[1;5Hc", ["a   c", "", ""]),
    ("a\x1b7b\x1b[?1049hc\x1b[ud\x1b[?1049l\x1b8e", ["abe", "", ""]),
    ("\x1b[2;3r\x1b[3;1H\x1b[9Fa\x1b[9Eb", ["", "a", "b"]),
    ("\x1b[2;3ra\x1b[?6hb\x1b[2;1Hc\x1b[?6ld", ["d", "b", "c"]),
    ("a\x1b[1;\x18b\x1b[3", ["ab", "", ""]),
    ("\x1b[2;2H\x1b[5Aa\x1b[9Bb\x1b[9Cc", [" a", "", "  b    c"]),
)


@dataclass
class Shell:
    """A terminal in a tab."""

    page: Page

    async def has(self, text: str) -> None:
        """Wait until a line begins with the text, on the screen or above it."""
        line = re.compile("^" + re.escape(text))
        await self.page.locator(".tline", has_text=line).first.wait_for(timeout=15_000)

    async def run(self, command: str) -> None:
        await self.page.locator(".keys").focus()
        await self.page.keyboard.type(command)
        await self.page.keyboard.press("Enter")

    async def size(self, name: str) -> list[int]:
        """Return the rows and columns that programs see."""
        await self.run(f"echo {name} $(stty size)")
        line = self.page.locator(".tline", has_text=re.compile(rf"^{name} \d+ \d+"))
        return [int(number) for number in (await line.first.text_content() or "").split()[1:]]

    async def says(self, text: str) -> None:
        await self.page.locator(".notice", has_text=text).wait_for(timeout=15_000)

    async def lines(self) -> list[str]:
        return [line for line in await self.page.locator(".tline").all_text_contents() if line]


@pytest.fixture(scope="session")
def chat_of_shells(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A chat whose workspace is ready. It is deleted at the end, because agents outlive `up`."""
    running, chat = deployment.up, new_id()
    assert isinstance(running, Up)
    running.data("template", "push", folder(tmp_path_factory.mktemp("shells"), TEMPLATE))
    created = running.run("create", "shell", "--chat", chat)
    assert created.returncode == 0, created.stderr
    yield chat
    deleted = running.run("workspace", "delete", chat)
    assert deleted.returncode == 0, deleted.stderr


@pytest.fixture
async def shell(tab: Tab, chat_of_shells: str) -> AsyncIterator[Shell]:
    """A new shell in the tab of an operator. At the end all shells of the workspace are ended."""
    opened = Shell(tab.page)
    await tab.open(f"/chat/{chat_of_shells}")
    address = await tab.page.locator("a", has_text="Terminal").get_attribute("href")
    await tab.page.goto(tab.url + str(address))
    await opened.has("$")
    yield opened
    if await tab.page.locator("text=End shell").is_visible():
        await tab.page.click("text=End shell")
        await opened.says("The shell")


async def test_a_shell_runs_has_the_size_of_the_page_and_ends(shell: Shell, tab: Tab) -> None:
    await shell.run("echo h''i; printf '\\033[31mred\\033[0m\\n'")
    await shell.has("hi")
    await expect(tab.page.locator(".tline .f-red")).to_have_text("red")
    await tab.is_accessible()
    await tab.page.set_viewport_size(PHONE)
    await tab.page.click("[aria-label=Keys] button:has-text('Ctrl')")
    await tab.page.keyboard.insert_text("d")  # as keyboards of phones do
    await shell.says("The shell ended with status 0.")
    await tab.page.click("text=New shell")
    await shell.has("$")
    await tab.page.set_viewport_size(WIDE)
    wide = await shell.size("wide")
    await tab.page.set_viewport_size({"width": 800, "height": 500})
    await tab.page.wait_for_function(
        f"() => document.querySelector('.rows').children.length < {wide[0]}"
    )
    narrow = await shell.size("narrow")
    assert wide[0] > narrow[0] > 5
    assert wide[1] > narrow[1] > 40

    await shell.run("exit 3")
    await shell.says("The shell ended with status 3.")
    await tab.page.click("text=New shell")
    await tab.hides(".notice")
    await shell.has("$")
    await shell.run("echo a''gain")
    await shell.has("again")


async def test_keys_paste_and_programs_that_use_the_whole_screen(shell: Shell, tab: Tab) -> None:
    await shell.run("cat -v")
    keys = tab.page.keyboard
    for key in ("ArrowUp", "Control+a", "Escape", "F5", "Shift+Tab", "Alt+b", "Delete", "Tab"):
        await keys.press(key)
    await keys.press("Enter")
    await shell.has("^[[A^A^[^[[15~^[[Z^[b^[[3~")
    await tab.page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.setData("text/plain", "one\\r\\ntwo\\u001b[201~\\u0003 three\\n");
            const event = new ClipboardEvent("paste", { clipboardData: data, cancelable: true });
            document.querySelector(".keys").dispatchEvent(event);
        }"""
    )
    await shell.has("two[201~ three")
    await keys.press("Control+c")

    await shell.run(
        "printf '\\033[?1049h\\033[2J\\033[5;3Hwhole\\033(0lqk\\033(B'; read x; printf '\\033[?1049l'"
    )
    await shell.has("  whole┌─┐")
    assert not [line for line in await shell.lines() if "cat -v" in line]
    await keys.press("Enter")
    await shell.has("$ cat -v")
    assert not [line for line in await shell.lines() if "┌─┐" in line]
    await tab.page.evaluate("document.querySelector('.keys').value = ''")
    await keys.press("Control+m")
    assert await tab.page.evaluate("document.activeElement.textContent") == "← Chat"


async def test_a_reload_goes_on_with_the_shell_and_another_tab_may_join(
    shell: Shell, tab: Tab
) -> None:
    await shell.run("word=kept; seq 120000; printf '\\033[6n'; read answer; echo d''one")
    await shell.has("^[[")  # the answer to the question where the cursor is
    await tab.page.keyboard.press("Enter")
    await shell.has("done")
    await tab.page.reload()
    await shell.has("done")  # the question is not answered again
    await shell.run("echo $word $word")
    await shell.has("kept kept")

    second = Shell(await tab.page.context.new_page())
    await second.page.goto(tab.page.url.rpartition("/")[0])
    await second.says("A shell runs in this workspace.")
    await second.page.click("text=Go on with the one of")
    await second.has("kept kept")
    await second.run("echo from t''wo")
    await shell.has("from two")
    lines = await second.lines()
    numbers = [int(line) for line in lines if line.isdigit()]
    assert numbers == list(range(numbers[0], 120_001))
    assert len(numbers) > 1900
    await second.page.close()
    await shell.run("echo still h''ere")
    await shell.has("still here")


async def test_output_changes_the_screen_and_runs_nothing(
    world: World, shell: Shell, tab: Tab, chat_of_shells: str
) -> None:
    await _shows_screens_as_other_terminals_do(tab)
    await tab.page.evaluate(
        "navigator.clipboard.readText = navigator.clipboard.writeText = () => (document.title = 'run')"
    )
    title = await tab.page.title()
    await world.operator.rpc(
        "write_file",
        chat_id=chat_of_shells,
        args={"path": "hostile", "content": HOSTILE},
    )
    await shell.run("cat hostile; echo d''one")
    await shell.has("done")

    assert await tab.page.title() == title
    assert await tab.page.locator("main a, main img, main script").count() == 0
    lines = await shell.lines()
    assert "click" in lines
    assert not [c for c in "".join(lines) if c in "\x1b\x07\x9b\x9c\x9d\u202e"]
    assert await tab.page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


async def test_who_may_run_no_commands_gets_no_terminal(
    world: World, open_tab: OpenTab, chat_of_shells: str
) -> None:
    chat = chat_of_shells
    tab = await open_tab((await world.operator.rpc("issue_page_code", chat_ids=[chat]))["page"])
    await tab.shows(".pill.big", "Ready")
    assert await tab.page.locator("text=Terminal").count() == 0
    await tab.page.goto(f"{tab.url}/page/terminal.html#{chat}")
    await tab.shows(".notice", "Your session has no right to run commands in this workspace.")
    assert await tab.page.evaluate("window.open('/') === null")

    for may_run in (False, True):
        issued = await world.operator.rpc(
            "issue_token",
            role="chat",
            chat_ids=[chat],
            organization_id=ORGANIZATION,
            owner_id=new_id(),
            owner_name="ada",
            exec=may_run,
        )
        of_chat = await open_tab(f"{tab.url}/?")
        await of_chat.page.fill("#code", issued["token"])
        await of_chat.page.click("text=Sign in")
        await of_chat.shows(".pill.big", "Ready")
        await of_chat.shows(".actions button", "Stop")
        assert (
            await of_chat.page.locator(".actions a").all_text_contents() == ["Terminal"] * may_run
        )


async def test_a_workspace_that_does_not_run_says_what_to_do(world: World, tab: Tab) -> None:
    chat = await world.chat()
    await tab.page.goto(f"{tab.url}/page/terminal.html#{chat.id}")
    await tab.shows(".notice", "This chat has no workspace.")
    await asyncio.gather(world.ready(chat), tab.shows(".notice", "agent"))


async def _shows_screens_as_other_terminals_do(tab: Tab) -> None:
    found = await tab.page.evaluate(
        """async (written) => {
            const { Screen } = await import("/page/screen.js");
            const lines = (texts) => {
                const screen = new Screen(8, 3);
                for (const text of texts) screen.write(text);
                return screen.lines.map((line) => line.text);
            };
            return written.map((text) => [lines([text]), lines(text)]);
        }""",
        [written for written, _ in SCREENS],
    )
    for (written, shown), (at_once, by_characters) in zip(SCREENS, found, strict=True):
        assert at_once == shown, repr(written)
        assert by_characters == shown, repr(written)
