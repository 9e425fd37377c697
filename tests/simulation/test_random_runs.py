"""Random runs of the real worker: whatever happens, in whatever order, the promises hold.

Callers ask and cancel, a provisioner and agents tell what they like and in any order, everything may
come twice, limits, lifetimes and graces pass, workers die while they publish or are paused in the middle.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from statemachine.states import State
from tests.simulation.world import AGENTS, World
from tests.worker.messages import Job

EXAMPLES, STEPS = 500, 50
CHATS = st.integers(0, 1)
HANDS = st.integers(0, 1)
ANY = st.integers(0, 1000)
BATCH = st.sampled_from((1, 2, 3, 256))
TOOLS = st.sampled_from(("create_workspace", "start_workspace", "stop_workspace", "list_templates"))
HOW = st.sampled_from(("started", "succeeded", "succeeded", "succeeded", "failed", "canceled"))
LIVES = ("connected", "connected", "disconnected", "created", "starting", "ready", "start_error")
WELL = ("ready", "start_error", "disconnected", "disconnected")
REACHED: set[str] = set()
"""States that the store held at some step of some run."""
MET: Counter[str] = Counter()
SELDOM = {"left stopped", "lifetime over", "grace over", "left running"}
"""Each is met some twenty times at least; "stop tried again" twice, or not at all."""


class RandomRuns(RuleBasedStateMachine):
    """One world and what may happen in it."""

    @initialize(ttl=st.sampled_from(("", "15m")))
    def begin(self, ttl: str) -> None:
        self.loop = asyncio.new_event_loop()

        async def opened() -> World:
            return await World(ttl=ttl).open()

        self.world = self.loop.run_until_complete(opened())

    def run(self, step: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(step)

    def job(self, number: int) -> Job:
        jobs = self.world.rig.jobs()
        return jobs[-1 - number % min(len(jobs), 4)]

    @property
    def chat(self) -> list[str]:
        return self.world.chats

    @rule(chat=CHATS, tool=TOOLS, hand=HANDS)
    def ask(self, chat: int, tool: str, hand: int) -> None:
        self.run(self.world.ask(self.chat[chat], tool))
        self.run(self.world.work(hand, 256))

    @rule(chat=CHATS, tools=st.lists(TOOLS, min_size=1, max_size=3))
    def ask_at_once(self, chat: int, tools: list[str]) -> None:
        for tool in tools:
            self.run(self.world.ask(self.chat[chat], tool))

    @precondition(lambda self: self.world.rig.jobs())
    @rule(how=HOW, agents=st.sampled_from(AGENTS), hand=HANDS)
    def build(self, how: str, agents: tuple[str, ...], hand: int) -> None:
        self.run(self.world.tell(self.job(0), how, agents))
        self.run(self.world.work(hand, 2))

    @precondition(lambda self: self.world.rig.jobs())
    @rule(number=ANY, how=HOW, agents=st.sampled_from(AGENTS))
    def build_any(self, number: int, how: str, agents: tuple[str, ...]) -> None:
        self.run(self.world.tell(self.job(number), how, agents))

    @precondition(lambda self: self.world.rig.jobs())
    @rule(steps=st.sampled_from((1, 1, 2, 3)), how=st.sampled_from(WELL), hand=HANDS)
    def go_well(self, steps: int, how: str, hand: int) -> None:
        self.run(self.world.bring_up(steps, how))
        self.run(self.world.work(hand, 256))

    @precondition(lambda self: self.world.rig.jobs())
    @rule(how=st.sampled_from(LIVES), hand=HANDS)
    def live(self, how: str, hand: int) -> None:
        job = self.job(0)
        self.run(self.world.report(job, self.world.agents.get(job["build_id"], "main"), how, 0))
        self.run(self.world.work(hand, 2))

    @precondition(lambda self: self.world.rig.jobs())
    @rule(
        number=ANY,
        agent=st.sampled_from(("main", "one-coderd-chat", "z")),
        how=st.sampled_from(LIVES),
        back=st.sampled_from((0, 2)),
    )
    def live_any(self, number: int, agent: str, how: str, back: int) -> None:
        self.run(self.world.report(self.job(number), agent, how, back))

    @precondition(lambda self: self.world.rig.jobs())
    @rule(number=ANY, what=st.sampled_from(("show", "elsewhere", "elsewhere", "delete", "deleted")))
    def seldom(self, number: int, what: str) -> None:
        self.run(self.world.seldom(self.job(number), what, number // 4))

    @rule(hand=HANDS, most=BATCH)
    def work(self, hand: int, most: int) -> None:
        self.run(self.world.work(hand, most))

    @rule(
        what=st.sampled_from(("again", "cancel", "cancel ahead", "repeat", "wake", "wake")),
        number=ANY,
        chat=CHATS,
        tool=TOOLS,
    )
    def trouble(self, what: str, number: int, chat: int, tool: str) -> None:
        self.run(self.world.trouble(what, number, self.chat[chat], tool))

    @rule(
        what=st.sampled_from(("publish", "delete", "pause")),
        hand=HANDS,
        most=BATCH,
        breaks_in=st.integers(0, 6),
        after=st.booleans(),
    )
    def disturb(self, what: str, hand: int, most: int, breaks_in: int, *, after: bool) -> None:
        if what == "pause":
            self.run(self.world.pause(hand, most))
        else:
            away = what == "delete"
            self.run(self.world.die(hand, most, breaks_in, after=after, away=away))

    @rule(
        seconds=st.sampled_from((0.5, 6.0, 40.0, 130.0, 601.0, 601.0, 901.0)),
        hand=st.integers(0, 2),
    )
    def pass_time(self, seconds: float, hand: int) -> None:
        self.world.rig.clock.advance(seconds)
        if hand < len(self.world.hands):
            self.run(self.world.work(hand, 256))

    @invariant()
    def promises_hold(self) -> None:
        self.run(self.world.check())

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            REACHED.update(self.world.reached)
            self.run(self.world.drain())
            self.run(self.world.check_end())
            for chat in self.chat:
                self.world.runs_once(chat)
            self.run(self.world.rest())
            self.run(self.world.check())
            self.run(self.world.check_rest())
            MET.update(self.world.met)
        finally:
            self.loop.close()


def test_promises_hold_in_random_runs() -> None:
    REACHED.clear()
    MET.clear()
    logging.disable(logging.CRITICAL)
    try:
        run_state_machine_as_test(
            RandomRuns,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        logging.disable(logging.NOTSET)
    assert set(State) == REACHED, "runs that reach less would prove less"
    assert MET.keys() >= SELDOM, MET
