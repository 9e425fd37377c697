"""The version of the template that requested builds use."""

from __future__ import annotations

from statemachine.calls import Known, Policy
from statemachine.events import BuildRequested, Event, TemplateRef
from statemachine.requests import ending
from statemachine.templates import Version
from tests.unit.driver import PLAIN, PYTHON, catalog, template
from tests.unit.facts import STOP, chat, event, requested, started, succeeded, uid

OLD: Version = template(PLAIN, version="old").active


def by_us(version: str) -> Event:
    """Return the request of a start build with this version of the template."""
    asked = requested().data
    assert isinstance(asked, BuildRequested)
    ref = TemplateRef(id=PYTHON.id, name="python", version_id=uid(version), pool="local")
    return event(asked.model_copy(update={"template": ref}))


def version_of_the_stop(*facts: Event, known: Known | None = None) -> str | None:
    known = known or Known(catalog=catalog(PYTHON, older=(OLD,)), policy=Policy(), seed=b"seed")
    build = ending(chat(*facts), STOP, known, "label")
    return build.template.version_id if build and build.template else None


def test_a_stop_uses_the_version_of_the_last_job() -> None:
    assert version_of_the_stop(by_us("old"), started()) == OLD.id


def test_a_stop_uses_the_version_of_the_last_build_even_if_made_elsewhere() -> None:
    updated = [by_us("old"), succeeded()]  # the fact reports that "version" was built

    assert version_of_the_stop(*updated) == PYTHON.active.id
    assert version_of_the_stop(*updated, succeeded(2)) == PYTHON.active.id


def test_a_stop_uses_the_version_of_the_job_if_no_other_is_known() -> None:
    nothing = Known(catalog=catalog(), policy=Policy(), seed=b"seed")

    assert version_of_the_stop(by_us("old"), succeeded(), known=nothing) == OLD.id


def test_no_stop_is_requested_for_an_unknown_template() -> None:
    assert version_of_the_stop(started()) is None
