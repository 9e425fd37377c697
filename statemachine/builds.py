"""What the facts of a provisioner tell of a build."""

from __future__ import annotations

from datetime import datetime

from statemachine import events
from statemachine.events import Transition
from statemachine.workspace import Build, Ending, Outcome


def seen_by(
    previous: Build | None, fact: events.ProvisionerFact, time: datetime, at: datetime
) -> Build:
    """Make the build that `fact` is the first sign of; what it doesn't tell is as before.

    `time` is the sender's, `at` when the fact is folded, as everywhere: limits count from there.
    """
    build = Build(
        id=fact.build_id,
        number=fact.build_number,
        transition=fact.transition,
        started_at=time,
        template=previous.template if previous else None,
        template_version_id=previous.template_version_id if previous else None,
        parameters=previous.parameters if previous else {},
        preset_id=previous.preset_id if previous else None,
        ttl_ms=previous.ttl_ms if previous else None,
    )
    return with_fact(build, fact, at)


def with_fact(build: Build, fact: events.ProvisionerFact, at: datetime) -> Build:
    """Return the build with the fact folded in."""
    if build.outcome is not None:
        return build  # of two terminal facts the first stored counts
    version = getattr(fact, "template_version_id", None) or build.template_version_id
    new: dict[str, object] = {"taken": True, "template_version_id": version}
    match fact:
        case events.BuildStarted():
            pass
        case events.BuildSucceeded(agents=agents):
            new["outcome"] = Outcome(ending=Ending.SUCCEEDED, agents=agents)
        case events.BuildFailed():
            new["outcome"] = Outcome(
                ending=Ending.FAILED,
                error=fact.error,
                error_code=fact.error_code,
                quota=fact.quota,
            )
        case events.BuildCanceled():
            new["outcome"] = Outcome(ending=Ending.CANCELED)
    if "outcome" in new:
        new["ended_at"] = at
    return build.model_copy(update=new)


def start_before(
    current: Build | None,
    last: Build | None,
    seen: Build,
    fact: events.ProvisionerFact,
    at: datetime,
) -> Build | None:
    """Return the last start as a late fact tells of it: a failed stop asks whether it succeeded.

    `current` is the newest build, `last` the newest start before it, `seen` what the fact speaks of.
    """
    starts = seen.transition is Transition.START
    if not starts or current is None or current.transition is Transition.START:
        return last
    if last is not None and last.id == seen.id:
        return with_fact(last, fact, at)
    return seen if last is None or seen.number > last.number else last
