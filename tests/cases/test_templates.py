"""Cases of templates that `template push` must refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cases.playing import INPUTS
from tests.cli.template_folders import QUICK, folder
from tests.rigs.messages import new_id
from tests.rigs.processes import Up


def refused(running: Up, template: Path) -> str:
    """Push a template that must be refused; return the error message."""
    organization = ("--organization", new_id())
    done = running.run("template", "push", template, *organization)

    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert running.run("template", "list", *organization).stdout == "", "nothing is stored"
    return done.stderr


def test_b06_push_refuses_a_list_as_value_of_an_agents_variable(running: Up) -> None:
    said = refused(running, INPUTS / "B06-push-takes-agent-env-list")

    assert "template.toml:6: agent[0].env.D: expected a text" in said


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("files", "more than 20,000 files and folders"),
        ("zeros", "more than 512 MiB"),
        ("ours", "the folder .workspaced belongs to workspaced"),
    ],
)
def test_b06_push_refuses_a_folder_that_cannot_be_unpacked(
    running: Up, tmp_path: Path, what: str, words: str
) -> None:
    made = folder(tmp_path)
    if what == "files":
        (made / "m").mkdir()
        for number in range(21_000):
            (made / "m" / str(number)).touch()
    elif what == "zeros":
        with (made / "z").open("wb") as file:
            file.truncate(600 * 1024 * 1024)
    else:
        (made / ".workspaced").mkdir()
        (made / ".workspaced" / "x").write_text("x")

    assert words in refused(running, made)
    shutil.rmtree(made)


def test_b23_push_refuses_a_variable_name_with_an_equals_sign(running: Up) -> None:
    assert "'A=B'" in refused(running, INPUTS / "B23-env-name-with-equals")


def test_b24_push_refuses_parameters_that_share_one_variable(running: Up) -> None:
    said = refused(running, INPUTS / "B24-two-names-one-variable")

    assert "'git-branch', 'git_branch', 'GIT_BRANCH'" in said
    assert "WORKSPACED_PARAM_GIT_BRANCH" in said


def test_b31_push_refuses_a_toml_number_for_a_text(running: Up) -> None:
    said = refused(running, INPUTS / "B31-toml-number-for-text")

    for where in (
        "parameter[0].default",
        "parameter[0].options[0].value",
        "parameter[0].options[1].value",
        "preset[0].parameters.python",
    ):
        assert f"{where}: expected a text" in said


def test_push_warns_about_a_sensitive_value_that_is_too_short_to_mask(
    running: Up, tmp_path: Path
) -> None:
    text = f'{QUICK}\n[[parameter]]\nname = "pin"\nsensitive = true\ndefault = "123"\n'

    done = running.run("template", "push", folder(tmp_path, text), "--organization", new_id())

    assert done.returncode == 0
    assert set(json.loads(done.stdout)) == {"template_id", "version_id"}
    assert "warning: parameter 'pin' is sensitive" in done.stderr
