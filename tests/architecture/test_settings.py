"""Flags take precedence over variables, variables over defaults; docs and help show all of them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from handlers.cli.command_table.servers import RunGateway, RunMcp, RunProvisioner, RunWorker, Up
from handlers.setting_flags import SETTING_FLAGS
from handlers.settings import (
    TABLE_END,
    TABLE_START,
    InvalidSettings,
    Settings,
    describe_variables,
    read_settings,
    settings_table,
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WORKSPACED_{name.upper()}", raising=False)


def test_defaults_apply_without_flags_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("WORKSPACED_NATS_URL", "")

    settings = read_settings({"nats_url": None, "command": "up"})

    assert settings.data_dir == Path("/home/somebody/.local/share/workspaced")
    assert (settings.nats_url, settings.database_url, settings.credentials) == (None, None, None)
    assert settings.build_timeout == settings.startup_scripts_timeout == 600
    assert settings.agent_connect_timeout == 120


def test_a_flag_takes_precedence_over_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKSPACED_BUILD_TIMEOUT", "0.5")
    monkeypatch.setenv("WORKSPACED_NATS_URL", "nats://from-environment")

    settings = read_settings({"nats_url": "nats://from-flag"})

    assert settings.nats_url == "nats://from-flag"
    assert settings.build_timeout == 0.5


@pytest.mark.parametrize("value", ["0", "0.09", "-1", "nan", "inf", "soon"])
def test_durations_below_a_tenth_of_a_second_are_rejected(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKSPACED_BUILD_TIMEOUT", value)

    with pytest.raises(InvalidSettings, match=f"WORKSPACED_BUILD_TIMEOUT is '{value}'"):
        read_settings()


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_an_empty_default_is_not_shown() -> None:
    """`Default: .` would read as the current directory."""
    text = describe_variables(Settings.model_fields.keys())

    assert "Default: ." not in text
    assert "Default: 600." in text


def test_the_table_in_the_docs_is_up_to_date() -> None:
    text = (Path(__file__).parents[2] / "docs/operators.md").read_text()

    table = text.partition(TABLE_START)[2].partition(TABLE_END)[0]

    assert table.strip() == settings_table().strip(), "run `make settings`"


def test_flags_of_settings_are_settings() -> None:
    assert SETTING_FLAGS.keys() <= Settings.model_fields.keys()


def test_help_describes_every_setting_as_a_flag_or_as_a_variable() -> None:
    """A role describes only the settings that it uses; `up` runs all roles but that for MCP."""
    roles = (RunWorker, RunGateway, RunProvisioner)
    of_roles = set(chain.from_iterable(role.variables for role in roles))

    described = SETTING_FLAGS.keys() | set(Up.variables) | set(RunMcp.variables)
    assert described == Settings.model_fields.keys()
    assert not SETTING_FLAGS.keys() & set(Up.variables)
    assert set(Up.variables) - of_roles == {"websocket_origins"}
    assert "held_calls" not in RunWorker.variables


def test_the_default_that_a_flag_shows_is_that_of_its_setting() -> None:
    defaults = {name: flag.default for name, flag in SETTING_FLAGS.items() if flag.default}

    assert defaults == {name: str(Settings.model_fields[name].default) for name in defaults}
