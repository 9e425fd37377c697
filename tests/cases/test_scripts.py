"""Cases of agents whose scripts write more than a log holds; tests/agent covers B22 and B23."""

from __future__ import annotations

import json

from tests.cases.playing import INPUTS
from tests.rigs.messages import new_id
from tests.rigs.processes import Up


def test_b03_a_startup_script_that_fills_its_log_still_reports_its_result(running: Up) -> None:
    chat = new_id()
    pushed = running.data("template", "push", INPUTS / "B03-verdict-lost-behind-the-limit")
    words = ("tool", "create_workspace", "--chat", chat, "--json", "--arg")
    answer = json.loads(running.run(*words, f"template_id={pushed['template_id']}").stdout)

    assert answer["lifecycle_state"] == "start_error"
    assert "exited with status 5" in running.run("log", chat).stdout
