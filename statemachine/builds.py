"""What the facts of a provisioner tell of a build."""

from __future__ import annotations

from datetime import datetime

from statemachine import events
from statemachine.chat import MOST_BEFORE_DELETE, Build, Ending, Outcome
from statemachine.events import Transition


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
    if build.outcome is not None:  # of two terminal facts the first stored counts
        late = isinstance(fact, events.BuildStarted) and build.untouched
        return build.model_copy(update={"untouched": False}) if late else build
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
            # Before its end, only a `build_started` can have told that the build was taken.
            new["untouched"] = build.transition is Transition.DELETE and not build.taken
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


def before_delete(
    followed: Build | None, earlier: tuple[Build, ...], build: Build
) -> tuple[Build, ...]:
    """Return the stops and deletes before `build`, which is followed from now on instead of `followed`."""
    if build.transition is not Transition.DELETE or followed is None:
        return ()
    match followed.transition:
        case Transition.START:
            return ()
        case Transition.STOP:
            return (_bare(followed),)
        case Transition.DELETE:
            return _newest((*earlier, _bare(followed)))


def with_earlier(
    current: Build | None,
    earlier: tuple[Build, ...],
    seen: Build,
    fact: events.ProvisionerFact,
    at: datetime,
) -> tuple[Build, ...]:
    """Return `earlier`, the stops and deletes before the delete `current`, with a late fact folded in.

    `seen`: the build that the fact speaks of, as if nothing else was known of it.
    """
    if current is None or current.transition is not Transition.DELETE:
        return ()
    if seen.transition is Transition.START:
        return earlier
    known = next((build for build in earlier if build.id == seen.id), None)
    if known is None:
        return _newest((*earlier, _bare(seen)))
    told = _bare(with_fact(known, fact, at))
    return tuple(told if build is known else build for build in earlier)


def _newest(builds: tuple[Build, ...]) -> tuple[Build, ...]:
    return tuple(sorted(builds, key=lambda build: build.number))[-MOST_BEFORE_DELETE:]


def _bare(build: Build) -> Build:
    """Return a build with nothing but how it ended."""
    return Build(
        id=build.id,
        number=build.number,
        transition=build.transition,
        started_at=build.started_at,
        taken=build.taken,
        untouched=build.untouched,
        outcome=Outcome(ending=build.outcome.ending) if build.outcome else None,
    )
