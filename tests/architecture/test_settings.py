"""Flag over environment over default."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.settings import InvalidSettings, Settings, read_settings, variables


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WORKSPACED_{name.upper()}", raising=False)


def test_without_a_word_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("WORKSPACED_NATS_URL", "")

    settings = read_settings({"nats_url": None, "command": "up"})

    assert settings.data_dir == Path("/home/somebody/.local/share/workspaced")
    assert (settings.nats_url, settings.database_url, settings.credentials) == (None, None, None)
    assert settings.build_timeout == settings.startup_scripts_timeout == 600
    assert settings.agent_connect_timeout == 120


def test_the_environment_is_over_the_default_and_a_flag_over_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKSPACED_BUILD_TIMEOUT", "0.5")
    monkeypatch.setenv("WORKSPACED_NATS_URL", "nats://from-environment")

    settings = read_settings({"nats_url": "nats://from-flag"})

    assert settings.nats_url == "nats://from-flag"
    assert settings.build_timeout == 0.5


@pytest.mark.parametrize("value", ["0", "0.09", "-1", "nan", "inf", "soon"])
def test_a_limit_is_at_least_a_tenth_of_a_second(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKSPACED_BUILD_TIMEOUT", value)

    with pytest.raises(InvalidSettings, match=f"WORKSPACED_BUILD_TIMEOUT is '{value}'"):
        read_settings()


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_a_default_that_is_nothing_is_not_shown() -> None:
    """`Default: .` would read as the current directory."""
    assert "Default: ." not in variables()
    assert "Default: 600." in variables()
