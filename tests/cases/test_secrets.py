"""Cases of sensitive values in the output of builds."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cases.playing import INPUTS
from tests.cli.template_folders import folder
from tests.rigs.messages import new_id
from tests.rigs.processes import Up

BOOL = """
name = "short-bool"
[[parameter]]
name = "flag"
type = "bool"
sensitive = true
required = true
[build]
start = "echo it is true that 2 trues are; exit 1"
"""
STEP = """
name = "NAME"
[[parameter]]
name = "key"
sensitive = true
required = true
[build]
start = "sh ./step.sh"
"""


def everything(running: Up, template: str | Path, **parameters: str) -> tuple[str, str]:
    """Create a workspace; return the build's log, and everything else that workspaced shows."""
    chat = new_id()
    pushed = running.data("template", "push", template)["template_id"]
    given = [f"parameters.{name}={json.dumps(value)}" for name, value in parameters.items()]
    args = [word for one in (f"template_id={pushed}", *given) for word in ("--arg", one)]
    answer = running.run("tool", "create_workspace", "--chat", chat, *args, "--json")
    assert "build_id" in answer.stdout, answer.stderr
    shown = (
        answer.stdout + answer.stderr,
        running.run("events", chat).stdout,
        running.run("chat", "show", chat, "--json").stdout,
        running.run("chat", "list", "--json").stdout,
    )
    return running.run("log", chat).stdout, "\n".join(shown)


def test_b25_a_secret_of_several_lines_is_masked(running: Up) -> None:
    """`echo` without quotes writes spaces for line ends; the failure repeats the last line."""
    lines = ("-----BEGIN KEY-----", "MC4CAQAwBQYDK2VwBCIEIAbcDefGhIjKl", "-----END KEY-----")

    log, shown = everything(running, INPUTS / "B25-secret-of-several-lines", key="\n".join(lines))

    assert "***" in log
    assert "exited with status 3" in shown
    for line in lines:
        assert line not in log
        assert line not in shown


@pytest.mark.parametrize(
    ("script", "value"),
    [
        ("""printf '%s' "$KEY" | sed 's/^/    /'""", "first line\n  second line"),
        ("""printf '%s' "$KEY" | sed 's/$/\\r/'""", "first line\nsecond line"),
        (
            """python3 -c 'import json,os; print(json.dumps(dict(os.environ)))'""",
            'first "l\nsecond/l',
        ),
        ("""python3 -c 'import os; print(dict(os.environ))'""", "first 'l\"\n\tsecond\\l"),
        (
            """python3 -c 'import os,urllib.parse as u; print(u.quote_plus(os.environ["KEY"]))'""",
            "first line&\nsecond line",
        ),
        (
            """python3 -uc 'import os\nfor x in os.environ["KEY"]: print(x, end="", flush=True)'""",
            "first-and-second",
        ),
        (
            """echo $KEY; echo '{"error": "with '$KEY'"}' > $WORKSPACED_ERROR_FILE""",
            "  first  line  and second",
        ),
    ],
    ids=["indented", "carriage returns", "JSON", "repr", "URL", "in pieces", "error file"],
)
def test_b25_a_secret_is_masked_in_every_spelling_that_a_step_writes(
    running: Up, tmp_path: Path, script: str, value: str
) -> None:
    made = folder(tmp_path, STEP.replace("NAME", f"step-{uuid4().hex[:8]}"))
    (made / "step.sh").write_text(f'export KEY="$WORKSPACED_PARAM_KEY"\n{script}\nexit 3\n')

    log, shown = everything(running, made, key=value)

    assert "***" in log
    assert "***" in shown
    for part in ("first", "second"):
        assert part not in log
        assert part not in shown


def test_b25_a_secret_that_is_too_short_is_not_masked(running: Up, tmp_path: Path) -> None:
    log, shown = everything(running, INPUTS / "B25-short-secret", flag="1")
    assert "step 1 of 10" in log
    assert "***" not in log
    assert '"flag": "***"' in shown, "its own field is hidden, however short it is"
    assert "step 1 of 10" in shown

    log, shown = everything(running, folder(tmp_path, BOOL), flag="true")
    assert "it is true that 2 trues are" in log
    assert '"flag": "***"' in shown
