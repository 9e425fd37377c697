"""The checks of the suite: each names a sentence of the contract, what it expects, and what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from workspaced.conformance.command import Command
from workspaced.conformance.observer import TERMINAL, Chat, Observer, Seen, next_job

LONGEST_SILENCE: Final = 10.0
"""Seconds between two `+WPI` of a job."""
_LOG_SIZE: Final = 32 * 1024
_ACKS: Final = ("+ACK", "+NXT", "+TERM")
_SHORT_BUILD: Final = 0.5
"""Builds that take no longer can't be met while they run."""
_SETTLED: Final = [
    "start_timeout",
    "start_error",
    "ready",
    "shutting_down",
    "shutdown_timeout",
    "shutdown_error",
    "off",
]


class Failed(Exception):
    """The provisioner did something else than the contract says; the text is what was seen."""


class Skipped(Exception):
    """The check could not be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, the contract's sentence, what is expected, and how it is made."""

    name: str
    sentence: str
    expected: str
    run: Callable[[Suite], Awaitable[str]]
    kills: bool = False
    """It kills the provisioner, so it runs alone, and only with a command that starts it again."""


@dataclass(slots=True)
class Suite:
    """The state that all checks use."""

    observer: Observer
    patience: float
    organization_id: str
    template_id: str
    parameters: Mapping[str, str]
    command: Command | None = None
    chats: list[Chat] = field(default_factory=list)
    reference: tuple[Seen, float] | None = None
    """A start job that workers requested and whose build succeeded, and how long that took."""

    async def requested(self) -> Seen:
        """Ask for a workspace in a chat of its own; return its start job."""
        chat = Chat(self.organization_id, self.template_id, self.parameters)
        self.chats.append(chat)
        args = {"template_id": self.template_id, "parameters": dict(self.parameters)}
        await self.observer.ask(chat, "create_workspace", args)
        first = await self.observer.first(
            lambda one: (
                (one.kind == "job" and one.data.get("chat_id") == chat.chat_id)
                or (one.kind in ("result", "dead") and one.event.get("subject") == chat.chat_id)
            ),
            self.patience,
        )
        if first is None:
            raise Failed("workspaced did not answer the request for a workspace: does it run?")
        if first.kind != "job":
            raise Failed(
                f"workspaced requested no job of this pool, but answered: {dict(first.data)}; name a "
                "template of the pool, and its --parameter KEY=VALUE"
            )
        return first

    async def fact(self, build_id: str, *names: str, since: int = 0) -> Seen:
        """Wait for a fact of a build. Raises Failed if it does not come."""
        fact = await self.observer.first(
            lambda one: (
                one.kind == "provisioner"
                and one.data.get("build_id") == build_id
                and one.name in names
            ),
            self.patience,
            since,
        )
        if fact is None:
            came = ", ".join(map(str, self.observer.facts(build_id))) or "none"
            ended = self.command.ended() if self.command else None
            more = "" if ended is None else f"; the command has ended with status {ended}"
            wanted = " or ".join(names)
            raise Failed(
                f"no {wanted} within {self.patience:g} s; facts of this build: {came}{more}"
            )
        return fact

    async def built(self) -> Seen:
        """Have a workspace built; return its start job."""
        job = await self.requested()
        end = await self.fact(job.data["build_id"], *TERMINAL)
        if end.name != "build_succeeded":
            raise Failed(f"the build of a new workspace ended with {end.name}: {dict(end.data)}")
        return job

    def mark(self) -> int:
        """Return a place in what was seen: now."""
        return len(self.observer.seen)


async def _build(suite: Suite) -> str:
    job = await suite.requested()
    build_id = job.data["build_id"]
    start = await suite.fact(build_id, "build_started", *TERMINAL)
    end = await suite.fact(build_id, *TERMINAL)
    if start.name != "build_started":
        raise Failed(f"{start.name} without a build_started before it")
    if end.name != "build_succeeded":
        raise Failed(f"{end.name}: {dict(end.data)}")
    for fact in (start, end):
        for key in ("workspace_id", "build_id", "build_number", "transition"):
            if fact.data.get(key) != job.data[key]:
                raise Failed(
                    f"{key} of {fact.name} is {fact.data.get(key)!r}, that of the job {job.data[key]!r}"
                )
        name = fact.subject.split(".")[-1]
        if fact.event.get("source") != f"/provisioner/{name}":
            raise Failed(f"source {fact.event.get('source')!r} on subject {fact.subject}")
        if fact.event.get("subject") != job.data["chat_id"]:
            raise Failed(
                f"the subject of {fact.name} is {fact.event.get('subject')!r}, not the chat"
            )
    suite.reference = (job, end.at - start.at)
    agents = end.data.get("agents")
    listed = len(agents) if isinstance(agents, list) else 0
    return f"build_started, then build_succeeded after {end.at - start.at:.1f} s, agents: {listed}"


async def _logs(suite: Suite) -> str:
    job = _reference(suite)[0]
    build_id = job.data["build_id"]
    lines = suite.observer.found(
        lambda one: (
            one.kind == "log"
            and one.subject.endswith(build_id)
            and one.data.get("origin") == "provisioner"
        )
    )
    if not lines:
        raise Skipped("the build wrote no log")
    numbers = [line.data.get("sequence") for line in lines]
    if list(dict.fromkeys(numbers)) != list(range(1, len(set(numbers)) + 1)):
        raise Failed(f"the numbers of its messages are {numbers}")
    for line in lines:
        if line.data.get("build_id") != build_id:
            raise Failed(f"build_id of message {line.data.get('sequence')} is another one")
        output = line.data.get("output")
        if not isinstance(output, str) or len(output.encode(errors="replace")) > _LOG_SIZE:
            raise Failed(
                f"output of message {line.data.get('sequence')} is no text of up to 32 KiB"
            )
        if not isinstance(line.data.get("stage"), str):
            raise Failed(f"message {line.data.get('sequence')} has no stage")
    return f"{len(lines)} messages, numbered from 1"


async def _agents(suite: Suite) -> str:
    job = _reference(suite)[0]
    end = await suite.fact(job.data["build_id"], "build_succeeded")
    listed = end.data.get("agents") or []
    if not listed:
        raise Skipped("the build lists no agents")
    ids = [agent.get("id") for agent in listed]
    if len(set(ids)) != len(ids):
        raise Failed(f"two agents have one id: {ids}")
    for agent_id in ids:

        def said(one: Seen, agent_id: str = agent_id) -> bool:
            return one.kind == "agent" and one.subject.endswith(f".{agent_id}")

        settled = await suite.observer.first(
            lambda one, said=said: (  # type: ignore[misc]
                said(one) and one.data.get("lifecycle") in _SETTLED
            ),
            suite.patience,
        )
        facts = suite.observer.found(said)
        names = ", ".join(f"{one.name} {one.data.get('lifecycle', '')}".strip() for one in facts)
        if settled is None:
            raise Failed(f"agent {agent_id} is not settled; it said: {names or 'nothing'}")
        # It may come after the lifecycle: an agent's facts have no order but their sequence.
        connected = await suite.observer.first(
            lambda one, said=said: said(one) and one.name == "agent_connected",  # type: ignore[misc]
            suite.patience,
        )
        if connected is None:
            raise Failed(f"agent {agent_id} did not say agent_connected, but: {names}")
        numbers: dict[str, list[Any]] = {}
        for fact in {one.identity: one for one in reversed(suite.observer.found(said))}.values():
            numbers.setdefault(fact.name, []).insert(0, fact.data.get("sequence"))
        for name, of_name in numbers.items():
            if any(not isinstance(one, int) for one in of_name) or of_name != sorted(of_name):
                raise Failed(f"the sequence of {name} of agent {agent_id} does not rise: {of_name}")
    return f"{len(ids)} agents connected and settled"


async def _ack(suite: Suite) -> str:
    job = await suite.built()
    again = next_job(job.event, "start", job.data["build_number"] + 1)
    sequence = await suite.observer.put(again)
    end = await suite.fact(again["data"]["build_id"], *TERMINAL)
    ack = await suite.observer.first(
        lambda one: one.kind == "ack" and one.sequence == sequence and one.name in _ACKS,
        suite.patience,
    )
    if ack is None:
        raise Failed(f"{end.name}, and no ack within {suite.patience:g} s after it")
    if ack.at < end.at - 0.005:
        raise Failed(f"{ack.name} came {end.at - ack.at:.2f} s before {end.name}")
    return f"{end.name}, then {ack.name}"


async def _repeat(suite: Suite) -> str:
    job = await suite.built()
    before = suite.observer.facts(job.data["build_id"])
    mark = suite.mark()
    sequence = await suite.observer.put(job.event)
    acked = await suite.observer.first(
        lambda one: one.kind == "ack" and one.sequence == sequence and one.name in _ACKS,
        suite.patience,
    )
    if acked is None:
        raise Failed(f"a job that was done is not acked within {suite.patience:g} s")
    known = {fact.identity for fact in before}
    facts = suite.observer.facts(job.data["build_id"])
    new = [fact for fact in facts if fact.identity not in known]
    if new:
        raise Failed(f"new facts for a build that had ended: {', '.join(map(str, new))}")
    said = [fact for fact in suite.observer.seen[mark:] if fact in facts]
    return f"{', '.join(map(str, said)) or 'no fact'} with the identity of before, then an ack"


async def _order(suite: Suite) -> str:
    job = await suite.requested()
    number = job.data["build_number"]
    jobs = [
        next_job(job.event, "stop", number + 1),
        next_job(job.event, "start", number + 2),
    ]
    for one in jobs:
        await suite.observer.put(one)
    builds = [job.data["build_id"], *(one["data"]["build_id"] for one in jobs)]
    for build_id in builds:
        await suite.fact(build_id, *TERMINAL)
    spans = []
    for build_id in builds:
        facts = suite.observer.facts(build_id)
        begun = [fact for fact in facts if fact.name == "build_started"]
        if begun:
            end = next(fact for fact in facts if fact.name in TERMINAL)
            spans.append((begun[0].at, end.at, begun[0].data.get("build_number")))
    spans.sort()
    for (_, ended, first), (start, _, second) in pairwise(spans):
        if start < ended - 0.005:
            raise Failed(f"build {second} began {ended - start:.2f} s before build {first} ended")
    ends = [next(f for f in suite.observer.facts(b) if f.name in TERMINAL) for b in builds]
    return ", then ".join(map(str, sorted(ends, key=lambda one: one.at)))


async def _cancel(suite: Suite) -> str:
    usual = _reference(suite)[1]
    if usual < _SHORT_BUILD:
        raise Skipped(f"a build takes {usual:.2f} s; use a template that takes some seconds")
    job = await suite.requested()
    build_id = job.data["build_id"]
    start = await suite.fact(build_id, "build_started", *TERMINAL)
    await suite.observer.cancel(job.event)
    end = await suite.fact(build_id, *TERMINAL)
    took = end.at - start.at
    if end.name == "build_canceled":
        return f"build_canceled after {took:.2f} s"
    raise Failed(f"{end.name} {took:.2f} s after build_started, and the cancel followed at once")


async def _late(suite: Suite) -> str:
    job = await suite.built()
    late = next_job(job.event, "start", job.data["build_number"] + 1, late=True)
    return await _not_built(suite, late)


async def _superseded(suite: Suite) -> str:
    job = await suite.built()
    number = job.data["build_number"]
    newer = next_job(job.event, "start", number + 2)
    await suite.observer.put(newer)
    await suite.fact(newer["data"]["build_id"], *TERMINAL)
    return await _not_built(suite, next_job(job.event, "stop", number + 1))


async def _not_built(suite: Suite, job: Mapping[str, Any]) -> str:
    build_id = job["data"]["build_id"]
    await suite.observer.put(job)
    end = await suite.fact(build_id, *TERMINAL)
    facts = suite.observer.facts(build_id)
    if end.name != "build_canceled" or any(fact.name == "build_started" for fact in facts):
        raise Failed(f"it was built: {', '.join(map(str, facts))}")
    return "build_canceled, and no build_started"


async def _resend(suite: Suite) -> str:
    job = await suite.built()
    mark = suite.mark()
    await suite.observer.ask_for_facts()
    return await _said_again(suite, job, mark)


async def _restart(suite: Suite) -> str:
    job = await suite.built()
    command = _command(suite)
    await command.kill()
    mark = suite.mark()
    await command.start()
    return await _said_again(suite, job, mark)


async def _said_again(suite: Suite, job: Seen, mark: int) -> str:
    build_id = job.data["build_id"]
    end = next(fact for fact in suite.observer.facts(build_id) if fact.name in TERMINAL)
    again = await suite.observer.first(
        lambda one: one.kind == "provisioner" and one.identity == end.identity,
        suite.patience,
        mark,
    )
    if again is None:
        facts = [
            fact for fact in suite.observer.facts(build_id) if fact in suite.observer.seen[mark:]
        ]
        others = ", ".join(map(str, facts)) or "nothing"
        raise Failed(
            f"{end.name} was not published again with its id within {suite.patience:g} s; of this "
            f"build came: {others}"
        )
    return f"{end.name} again, with the same id"


async def _death(suite: Suite) -> str:
    usual = _reference(suite)[1]
    if usual < _SHORT_BUILD:
        raise Skipped(f"a build takes {usual:.2f} s; use a template that takes some seconds")
    job = await suite.requested()
    build_id = job.data["build_id"]
    start = await suite.fact(build_id, "build_started", *TERMINAL)
    command = _command(suite)
    await command.kill()
    if any(fact.name in TERMINAL for fact in suite.observer.facts(build_id)):
        raise Skipped("the build ended before the command was killed")
    mark = suite.mark()
    await command.start()
    end = await suite.fact(build_id, *TERMINAL)
    begun = [
        fact
        for fact in suite.observer.facts(build_id)
        if fact.name == "build_started" and fact in suite.observer.seen[mark:]
    ]
    if end.name != "build_succeeded":
        raise Failed(f"the build that was begun again ended with {end.name}: {dict(end.data)}")
    if any(fact.identity != start.identity for fact in begun):
        raise Failed("after the restart, build_started of this build came with another id")
    return f"killed after build_started; {end.name} {end.at - start.at:.1f} s after it"


async def _progress(suite: Suite) -> str:
    longest, words = 0.0, 0
    for ack in suite.observer.found(lambda one: one.kind == "ack" and one.name in _ACKS):
        last = ack.at
        for word in suite.observer.found(
            lambda one, ack=ack: (  # type: ignore[misc]
                one.kind == "ack" and one.sequence == ack.sequence and one.name == "+WPI"
            )
        )[::-1]:
            longest, last, words = max(longest, last - word.at), word.at, words + 1
    if longest > LONGEST_SILENCE + 1:
        raise Failed(f"{longest:.1f} s without a +WPI")
    starts = {
        one.data.get("build_id"): one.at
        for one in suite.observer.found(lambda one: one.name == "build_started")
    }
    took = [
        one.at - starts[one.data.get("build_id")]
        for one in suite.observer.found(lambda one: one.name in TERMINAL)
        if one.data.get("build_id") in starts
    ]
    if not words and max(took, default=0) < LONGEST_SILENCE:
        raise Skipped(f"no build took longer than {LONGEST_SILENCE:g} s")
    if not words:
        raise Failed(f"a build took {max(took):.1f} s, and no +WPI came")
    return f"{words} times +WPI, at most {longest:.1f} s apart"


async def _delete(suite: Suite) -> str:
    chats = {chat.chat_id: chat for chat in suite.chats}
    built = {
        one.data["chat_id"]
        for one in suite.observer.found(lambda one: one.kind == "job")
        if one.data.get("chat_id") in chats
    }
    mark = suite.mark()
    for chat_id in built:
        await suite.observer.delete(chats[chat_id])
    for chat_id in built:
        job = await suite.observer.first(
            lambda one, chat_id=chat_id: (  # type: ignore[misc]
                one.kind == "job"
                and one.data.get("chat_id") == chat_id
                and one.data.get("transition") == "delete"
            ),
            suite.patience,
            mark,
        )
        if job is None:
            raise Failed(f"workers requested no delete build for chat {chat_id}")
        end = await suite.fact(job.data["build_id"], *TERMINAL)
        if end.name != "build_succeeded":
            raise Failed(f"a delete build ended with {end.name}: {dict(end.data)}")
    return f"{len(built)} workspaces deleted"


def _reference(suite: Suite) -> tuple[Seen, float]:
    if suite.reference is None:
        raise Skipped("the check `build` failed")
    return suite.reference


def _command(suite: Suite) -> Command:
    if suite.command is None:
        raise Skipped("no --command names how to start the provisioner")
    return suite.command


CHECKS: Final = (
    Check(
        "build",
        "build_started, build_succeeded, build_failed, build_canceled: all with workspace_id, build_id, "
        "build_number and transition of the job; the source's last part equals the last token of the subject.",
        "build_started, then build_succeeded, with the ids of the job",
        _build,
    ),
    Check(
        "logs",
        "log_appended: build_id, origin, stage, level, output (≤ 32 KiB), sequence from 1 per build and origin.",
        "messages numbered from 1 without gaps, none too large",
        _logs,
    ),
    Check(
        "agents",
        "Agents report agent_connected and agent_lifecycle, with a sequence that rises.",
        "each agent that build_succeeded lists connects, and its start-up settles",
        _agents,
    ),
    Check(
        "ack",
        "A provisioner acks a job after the build's terminal fact is stored.",
        "the terminal fact, then the ack",
        _ack,
    ),
    Check(
        "repeat",
        "Handling a job twice is harmless.",
        "a job that was done is acked, and its build has the one end that it had",
        _repeat,
    ),
    Check(
        "order",
        "A provisioner works the jobs of one workspace one after the other.",
        "no build of a workspace begins before the one before it has ended",
        _order,
    ),
    Check(
        "cancel",
        "build_cancel: who works or gets that build ends it and answers build_canceled.",
        "build_canceled",
        _cancel,
    ),
    Check(
        "late",
        "A job first taken after its not_after is answered build_canceled and not built.",
        "build_canceled, and no build_started",
        _late,
    ),
    Check(
        "superseded",
        "A job that is superseded by a newer build of its workspace is answered build_canceled and not built.",
        "build_canceled, and no build_started",
        _superseded,
    ),
    Check(
        "resend",
        "Senders keep the facts of the newest build of each workspace they serve, and publish them again, "
        "same identity, when workspaced.resend.provisioner asks.",
        "the terminal fact of a finished build again, with the same id",
        _resend,
    ),
    Check(
        "restart",
        "Senders publish the facts of the newest build of each workspace again, same identity, after their "
        "own restart.",
        "the terminal fact of a finished build again, with the same id",
        _restart,
        kills=True,
    ),
    Check(
        "death",
        "A job whose provisioner died comes again. Facts are published again with the same identity.",
        "a build whose provisioner is killed succeeds after the restart",
        _death,
        kills=True,
    ),
    Check(
        "progress",
        "A provisioner sends +WPI at least every 10 s until it acks the job.",
        "no pause of more than 10 s in builds that last longer",
        _progress,
    ),
    Check(
        "delete",
        "build_succeeded of a delete build ends the workspace.",
        "every workspace of this suite is deleted",
        _delete,
    ),
)
"""All checks. `build` comes first, since others need what it learns; those that kill come one by one."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a check: `passed`, `failed` or `skipped`, and what the suite saw."""

    check: Check
    outcome: str
    seen: str


async def run(suite: Suite, names: frozenset[str]) -> list[Result]:
    """Make the checks with these names; those that can, side by side."""
    chosen = [check for check in CHECKS if check.name in names or check.name == "build"]
    first = [check for check in chosen if check.name == "build"]
    last = [check for check in chosen if check.name in ("progress", "delete")]
    kills = [check for check in chosen if check.kills]
    others = [check for check in chosen if check not in (*first, *last, *kills)]
    results = []
    for together in (first, others, *([check] for check in (*kills, *last))):
        results += await asyncio.gather(*(_result(check, suite) for check in together))
    return sorted(results, key=lambda result: CHECKS.index(result.check))


async def _result(check: Check, suite: Suite) -> Result:
    try:
        return Result(check, "passed", await check.run(suite))
    except Failed as error:
        return Result(check, "failed", str(error))
    except Skipped as error:
        return Result(check, "skipped", str(error))
