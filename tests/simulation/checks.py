"""The checks of a run: some apply at every moment, some once the faults are over and it is at rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from bus.streams import CONSUMERS, IN, JOB, PRESENCE, RESULT, STATE, TIMER
from bus.subjects import ALARM_RANG
from bus.subjects import result as result_subject
from bus.subjects import state as state_subject
from handlers.worker.call_limits import retention
from statemachine.chat import Chat
from statemachine.lifetimes import rests_since
from statemachine.replay import replay
from statemachine.states import Phase, State
from statemachine.step import canceled_builds
from statemachine.store import CallKey
from statemachine.timers import TimerKind, alarm_time, timers_of
from statemachine.views import state_changed
from tests.simulation.database import rests_at

if TYPE_CHECKING:
    from tests.simulation.run import Run

SLACK: Final = 14.0
"""Seconds within which a timer takes effect when nothing prevents it: the time of a redelivery and
two back-offs."""
LOOK: Final = 1.0
"""Seconds between two checks of what must hold at every moment."""
CLOCKS: Final = 0.1
"""Seconds by which clocks may differ."""
CALM: Final = 5.0
"""Seconds within which a stored report takes effect if nothing is amiss."""
_SHOWN_OTHERWISE: Final = ("cause", "deadline", "failure")
"""The event log holds less about limits and causes than the snapshot."""


def state_in_turn(states: list[dict[str, Any]]) -> Iterator[str]:
    """Check that the published versions of a chat rise, and that it follows no older build."""
    if len(states) == 1:
        return  # the first state, or the first one since NATS lost data
    before, last = states[-2:]
    chat = last["chat_id"]
    if last["version"] <= before["version"]:
        yield f"state {last['version']} of chat {chat} is published after {before['version']}"
    same = before["workspace"] and last["workspace"]
    if same and before["workspace"]["id"] == last["workspace"]["id"]:
        older, newer = before["build"]["number"], last["build"]["number"]
        if newer < older:
            yield f"chat {chat} follows build {newer} after build {older}"


def deadlines(run: Run) -> Iterator[str]:
    """Check that timers are armed, and take effect in time, while the system works."""
    now, since = run.database.now, run.troubles.last
    overdue: dict[tuple[str, TimerKind, datetime, str], float] = {}
    for chat in chats(run):
        alarms = {alarm.at for alarm in run.database.store.alarms if alarm.chat_id == chat.chat_id}
        for purpose, due in timers_of(chat, run.limits).items():
            if now > due:
                what = "obeyed"
            elif not any(due <= at for at in alarms):
                what = "stored as an alarm"
            elif not any(alarm_time(due, now) <= at for at in _set(run)):
                what = "set"
            else:
                continue
            key = (chat.chat_id, purpose, due, what)
            overdue[key] = run.overdue.get(key, run.loop.now)
    run.overdue = overdue
    if _all_there(run):
        for (chat_id, purpose, due, what), seen in overdue.items():
            if run.loop.now > max(seen, since) + SLACK:
                yield f"{purpose} of chat {chat_id} at {due.timestamp()} is not {what}"


def cancels(run: Run) -> Iterator[str]:
    """Check that the step of a canceled build ends in time, while the system works."""
    working = run.machine.working()
    canceled = {one.build_id for chat in chats(run) for one in canceled_builds(chat)} & working
    run.unheeded = {build: run.unheeded.get(build, run.loop.now) for build in sorted(canceled)}
    provisioner = run.processes.get("provisioner")
    if provisioner is None or provisioner.paused or not _all_there(run):
        return
    for build, seen in run.unheeded.items():
        if run.loop.now > max(seen, run.served_since, run.troubles.last) + SLACK:
            yield f"build {build} is canceled, and its step goes on"


def is_calm(run: Run) -> bool:
    """Return whether workers work and have worked for a time, so that reports take effect soon."""
    return _all_there(run) and run.loop.now > run.troubles.last + CALM


def _set(run: Run) -> set[datetime]:
    """Return the times of the alarms that are set in NATS."""
    stream = run.network.streams.get(TIMER.name)
    return {
        datetime.fromtimestamp(json.loads(message.data)["at"] / 1000, UTC)
        for message in (stream.messages.values() if stream else ())
        if message.subject != ALARM_RANG
    }


def _all_there(run: Run) -> bool:
    """Return whether all workers work: a paused worker's open pulls take messages from others."""
    workers = [process for process in run.alive() if process.kind == "worker"]
    paused = any(process.paused for process in workers)
    return bool(workers) and not paused and run.network.up and run.database.up


def chats(run: Run) -> list[Chat]:
    """Return the snapshots."""
    found = (rests_at(run.database.store, chat) for chat in run.chats)
    return [chat for chat in found if chat is not None]


def is_at_rest(run: Run) -> bool:
    """Return whether nothing more will happen without a new request."""
    return not any(True for _ in unrest(run))


def unrest(run: Run) -> Iterator[str]:
    """Yield everything that is still unfinished."""
    store = run.database.store
    yield from (
        f"call {key} is accepted and not answered"
        for key in run.callers.accepted
        if key not in run.callers.answers
    )
    yield from (f"call {k} waits" for k, stored in store.calls.items() if stored.answer is None)
    for name in (IN.name, JOB.name):
        stream = run.network.streams.get(name)
        if stream is None:
            yield f"{name} is not there"
            continue
        yield from (f"{name} keeps {m.subject} {n}" for n, m in stream.messages.items())
    yield from _consumers_drained(run)
    yield from _not_published(run)
    for chat in chats(run):
        for purpose in timers_of(chat, run.limits):
            yield f"chat {chat.chat_id} waits for its {purpose}"
        if (rested := _rested(run, chat)) is not None:
            yield f"chat {chat.chat_id} has a workspace that rests since {rested}"
    yield from (f"{alarm} is handled, and kept" for alarm, done in store.alarms.items() if done)
    if (
        not run.losses
    ):  # NATS may lose the job of a build that has begun, and nobody requests that again
        unfinished = run.machine.unfinished()
        yield from (f"build {build} has begun and not ended" for build in unfinished)
    for name in sorted(set(run.machine.last_words()) - heard(run)):
        yield f"{name}, the end of a workspace's newest build, was never heard"


def _rested(run: Run, chat: Chat) -> datetime | None:
    """Return since when a workspace of the chat rests, if workspaces don't rest for ever."""
    keep = retention(run.database.store.setting_values)
    return None if keep is None else rests_since(chat)


def at_rest(run: Run) -> Iterator[str]:
    """Yield every violation of the checks that hold at rest."""
    yield from (f"dead letter: {data[:200]!r}" for data in run.dead)
    yield from _answers(run)
    there = {chat.chat_id: chat for chat in chats(run)}
    for chat_id in run.chats:
        if chat_id in there:
            yield from _of_chat(run, there[chat_id])
    yield from _builds(run, list(there.values()))


def _consumers_drained(run: Run) -> Iterator[str]:
    for declared in CONSUMERS:
        if declared.stream == PRESENCE.name:
            continue  # agents renew their presence messages for ever
        stream = run.network.streams.get(declared.stream)
        consumer = stream.consumers.get(declared.name) if stream else None
        if consumer is None or consumer._unacked or consumer._to_redeliver:
            yield f"consumer {declared.name} of {declared.stream} is not drained"


def _not_published(run: Run) -> Iterator[str]:
    """Yield what NATS lost and no worker has published again yet."""
    states, results = run.network.streams.get(STATE.name), run.network.streams.get(RESULT.name)
    for chat in chats(run):
        last = states.last_of(state_subject(chat.chat_id)) if states else None
        if chat.version and (last is None or json.loads(last.data)["data"] != shown(chat)):
            yield f"the state of chat {chat.chat_id} is not there"
    for key in run.callers.answers:
        if not results or not results.last_of(result_subject(*key)):
            yield f"the answer to call {key} is not there"


def _answers(run: Run) -> Iterator[str]:
    stored = run.database.store.calls
    for key, answers in run.callers.answers.items():
        if any(answer != answers[0] for answer in answers):
            yield f"call {key} is answered in two ways: {answers}"
        last = run.network.streams[RESULT.name].last_of(result_subject(*key))
        if last is None:
            yield f"the answer to call {key} can't be read any more"
        kept = stored.get(CallKey(*key))
        if kept is None or kept.answer is None:
            yield f"call {key} is answered and not known as answered"
        elif json.loads(json.dumps(kept.answer.result)) != answers[0]["result"]:
            yield f"call {key} is answered otherwise than the database says"


def _of_chat(run: Run, chat: Chat) -> Iterator[str]:
    name = f"chat {chat.chat_id}"
    log = run.database.store.entries.get(chat.chat_id, [])
    if [entry["seq"] for entry in log] != [*range(1, chat.seq + 1)]:
        yield f"{name}: its log counts {[e['seq'] for e in log]}, its snapshot {chat.seq}"
        return
    yield from _heard_once(run, chat, log)
    yield from _in_use(name, log)
    yield from _worked_in(run, name, log)
    if log:
        replayed = replay(log)[chat.chat_id]
        yield from (f"{name}: {difference}" for difference in replayed.differences)
        folded, kept = shown(replayed.chat), shown(chat)
        for key in _SHOWN_OTHERWISE:
            folded.pop(key), kept.pop(key)
        if folded != kept:
            yield f"{name}: its log folds to {folded}, kept is {kept}"
    last = run.network.streams[STATE.name].last_of(state_subject(chat.chat_id))
    if chat.version and (last is None or json.loads(last.data)["data"] != shown(chat)):
        yield f"{name}: last published is {last and last.data!r}, kept is {shown(chat)}"


def shown(chat: Chat) -> dict[str, Any]:
    """Return a snapshot in its published form."""
    found: dict[str, Any] = json.loads(json.dumps(state_changed(chat)))
    return found


def _heard_once(run: Run, chat: Chat, log: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Check that each stored inbound event is in the log and took effect at most once."""
    effects: Counter[tuple[str, str]] = Counter()
    for entry in log:
        effects[entry["event"]["source"], entry["event"]["id"]] += entry["outcome"] != "repeat"
    twice = [name for name, count in effects.items() if count > 1]
    yield from (f"{name} took effect twice" for name in twice)
    for subject, data in run.inbound:
        if b"workspaced.agent_activity.v1" in data:
            continue  # most reports put nothing off, and leave no trace
        if chat.chat_id in subject and identity(data) not in effects:
            yield f"{data[:200]!r} was stored on {subject} and is lost"


def _in_use(name: str, log: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Check that no lifetime ends sooner than activity, calls and requests to keep the workspace allow."""
    put_off_by, until = timedelta(0), datetime.min.replace(tzinfo=UTC)
    for entry in log:
        data, at = entry["event"]["data"], datetime.fromisoformat(entry["at"])
        match entry["event"]["type"].split(".")[1]:
            case "build_requested" if data["transition"] == "start":
                shorter = min(data["activity_bump_ms"], data["ttl_ms"] or 0)
                put_off_by, until = timedelta(milliseconds=shorter), at
            case "agent_activity" | "workspace_used" if entry["outcome"] == "changed":
                until = max(until, at + put_off_by)
            case "keep_requested" if entry["outcome"] == "changed":
                until = max(until, at + timedelta(seconds=data["seconds"]))
            case "ttl_passed" if at < until:
                yield f"{name} is stopped at {at}, and was to run until {until}"


def _worked_in(run: Run, name: str, log: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Check that no lifetime ends although an agent reported activity in time, whatever the log says of that."""
    put_off_by, start, agents, ended_at = 0.0, "", set[str](), 0.0
    for entry in log:
        data, at = entry["event"]["data"], datetime.fromisoformat(entry["at"]).timestamp()
        match entry["event"]["type"].split(".")[1]:
            case "build_requested" if data["transition"] == "start":
                shorter = min(data["activity_bump_ms"], data["ttl_ms"] or 0)
                put_off_by, start, agents = shorter / 1000, data["build_id"], set()
            case "build_succeeded" if data["build_id"] == start and not agents:
                agents, ended_at = {agent["id"] for agent in data["agents"]}, at
            case "ttl_passed":
                for stored, event in run.activity.values():
                    by = event["data"]["agent_id"] in agents and event["data"]["build_id"] == start
                    earliest = stored + put_off_by * 0.9 - CLOCKS
                    in_time = ended_at < stored < at - CALM
                    if by and in_time and at < earliest and _was_calm(run, stored, at):
                        yield f"{name} is stopped at {at}, and somebody was at work at {stored}"


def _was_calm(run: Run, since: float, until: float) -> bool:
    return not any(since - CALM <= moment <= until + LOOK for moment in run.disturbed)


def identity(data: bytes) -> tuple[str, str]:
    """Return the identity of an event."""
    event = json.loads(data)
    return event["source"], event["id"]


def heard(run: Run) -> set[tuple[str, str]]:
    """Return the identities of all applied events."""
    logs = run.database.store.entries.values()
    return {(e["event"]["source"], e["event"]["id"]) for log in logs for e in log}


def _builds(run: Run, there: Iterable[Chat]) -> Iterator[str]:
    """Check that each requested build has one job and one end, and was not built again."""
    machine, asked, numbers = run.machine, Counter[str](), Counter[tuple[str, int]]()
    newest: dict[str, tuple[int, str]] = {}
    for entry in (e for log in run.database.store.entries.values() for e in log):
        if entry["event"]["type"] == "workspaced.build_requested.v1":
            build = entry["event"]["data"]
            asked[build["build_id"]] += 1
            numbers[build["workspace_id"], build["build_number"]] += 1
            this = build["build_number"], build["build_id"]
            newest[build["workspace_id"]] = max(this, newest.get(build["workspace_id"], this))
    ends = machine.ends()
    yield from (f"build {b} is asked for twice" for b, n in asked.items() if n > 1)
    yield from (f"two builds have the number {key}" for key, n in numbers.items() if n > 1)
    # If a worker dies before it publishes two jobs for a workspace, the next worker publishes the newer one only.
    last = {build_id for _, build_id in newest.values()}
    unneeded = {job.build_id for job in run.database.store.jobs.values() if job.unneeded}
    needed = last - unneeded
    yield from (f"build {b} is asked for and has no job" for b in needed if b not in run.jobs)
    yield from (f"build {b} has a job and is not asked for" for b in run.jobs if b not in asked)
    yield from (f"build {b} is built again after its end" for b in sorted(machine.built_again))
    yield from (f"build {b} has {n} ends" for b, n in ends.items() if n != 1)
    # After a loss in NATS, workers don't request a job again once its time has passed.
    due = (last | run.jobs.keys()) - (unneeded - machine.begun)
    yield from (f"build {b} has no end" for b in due if b not in ends and not run.losses)
    yield from (f"the step of build {b} has not ended" for b in sorted(machine.working()))
    yield from _agents(run)
    for chat in there:
        yield from _running(run, chat)


def _running(run: Run, chat: Chat) -> Iterator[str]:
    """Check that each workspace that exists is the chat's or remembered, and that each one that runs is to run."""
    mine = chat.current.id if chat.current else None
    left = {record.id for record in chat.orphans}
    known = {record.id for record in chat.previous if not record.deleted} | {mine}
    asked = {j["workspace_id"] for j in run.jobs.values() if j["chat_id"] == chat.chat_id}
    for workspace in sorted(asked & run.machine.running.keys()):
        how = run.machine.running[workspace]
        lost = run.losses and _being_stopped(chat, workspace)
        if workspace not in known:
            yield f"workspace {workspace} exists ({how}), and no row tells of it"
        elif workspace == mine:
            yield from _running_current(run, chat, how)
        elif how == "start" and workspace not in left and not lost:
            yield f"workspace {workspace} runs on and nobody knows"
        elif retention(run.database.store.setting_values) is not None and not lost:
            yield f"workspace {workspace} was replaced, has rested, and still exists ({how})"


def _running_current(run: Run, chat: Chat, how: str) -> Iterator[str]:
    start, name = chat.start_build, f"the workspace of chat {chat.chat_id}"
    if how == "start" and chat.state is State.STOPPED:
        yield f"{name} runs and is shown as stopped"
    if chat.phase is Phase.RUNNING and start is not None and start.ttl_ms:
        yield f"{name} has a lifetime, and runs for ever"
    rests = chat.phase in (Phase.STOPPED, Phase.FAILED_BUILD, Phase.FAILED_DELETE)
    if rests and retention(run.database.store.setting_values) is not None:
        yield f"{name} has rested, and still exists ({how})"


def _agents(run: Run) -> Iterator[str]:
    """Check that agents run in running workspaces only."""
    for agent in sorted(run.machine.agents):
        workspace = run.machine.configs[agent].workspace_id
        if run.machine.running.get(workspace) != "start":
            yield f"agent {agent} runs, but its workspace {workspace} does not"


def _being_stopped(chat: Chat, workspace_id: str) -> bool:
    """Return whether its newest build is open: a job that NATS lost may never be repeated."""
    record = chat.previous_workspace(workspace_id)
    return record is not None and record.build is not None and record.build.outcome is None
