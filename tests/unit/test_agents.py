"""The choice of a workspace's agent (contract §6)."""

from __future__ import annotations

from itertools import permutations

import pytest

from statemachine.workspace import BuiltAgent, Unselectable, choose_agent
from tests.unit.facts import uid


def agent(name: str, order: int = 0, parent: str | None = None, key: str = "") -> BuiltAgent:
    return BuiltAgent(
        id=uid(key or name),
        name=name,
        display_order=order,
        parent_id=None if parent is None else uid(parent),
    )


@pytest.mark.parametrize(
    ("agents", "chosen"),
    [
        ([agent("b"), agent("a")], "a"),
        ([agent("a", 1), agent("b", 0)], "b"),
        ([agent("b"), agent("A")], "A"),
        ([agent("a"), agent("B"), agent("A")], "A"),
        ([agent("zed"), agent("kid", -1, "zed")], "zed"),
        ([agent("a"), agent("z-coderd-chat", 9)], "z-coderd-chat"),
        ([agent("a"), agent("z-CoderD-Chat")], "z-CoderD-Chat"),
        ([agent("-coderd-chat", 5), agent("a")], "-coderd-chat"),
        ([agent("a-coderd-chat-2"), agent("b")], "a-coderd-chat-2"),
        ([agent("a"), agent("kid-coderd-chat", parent="a")], "a"),
        ([agent("x-coderd-chat"), agent("kid-coderd-chat", parent="x")], "x-coderd-chat"),
    ],
)
def test_the_choice_of_agent_does_not_depend_on_the_order_of_the_list(
    agents: list[BuiltAgent], chosen: str
) -> None:
    for listed in permutations(agents):
        found = choose_agent(listed)

        assert isinstance(found, BuiltAgent)
        assert found.name == chosen


def test_agents_with_equal_names_are_distinguished_by_id() -> None:
    twins = [agent("a", key="1"), agent("a", key="2")]

    assert choose_agent(twins) == choose_agent(twins[::-1]) == min(twins, key=lambda twin: twin.id)


def test_several_agents_named_for_the_chat_are_an_error_that_names_them() -> None:
    found = choose_agent([agent("a-coderd-chat"), agent("b-CODERD-chat"), agent("c")])

    assert isinstance(found, Unselectable)
    assert "a-coderd-chat" in found.message
    assert "b-CODERD-chat" in found.message


def test_an_error_about_very_many_long_names_stays_short_enough_to_be_published() -> None:
    crowd = [agent(f"{'x' * 3_000}{n}-coderd-chat") for n in range(80)]

    found = choose_agent(crowd)

    assert isinstance(found, Unselectable)
    assert "and 16 more" in found.message
    assert len(found.message) < 20_000


def test_agents_without_a_root_are_an_error() -> None:
    assert isinstance(choose_agent([agent("kid", parent="gone")]), Unselectable)
