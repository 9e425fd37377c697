"""The owner of a chat; a chat service names the owner in its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import BeforeValidator, ValidationError

from workspaced.errors import Invalid
from workspaced.models import Value

DEFAULT_ORGANIZATION = str(uuid5(NAMESPACE_URL, "workspaced:organization:default"))
"""The organization of templates that were pushed without one."""


def _uuid_text(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value


class Owner(Value):
    """The owner of a chat. The first accepted request of a chat fixes it."""

    id: Annotated[str, BeforeValidator(_uuid_text)]
    """A lower-case UUID, or a `uuid.UUID`."""
    name: str
    """The first part of the workspace's full name."""
    organization: Annotated[str, BeforeValidator(_uuid_text)] = DEFAULT_ORGANIZATION
    """The UUID of the organization that owns the templates."""

    if not TYPE_CHECKING:  # type checkers know the fields

        def __init__(self, **fields: object) -> None:
            """Raise Invalid if a field is missing or is no text."""
            try:
                super().__init__(**fields)
            except ValidationError as error:
                wrong = ", ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())
                raise Invalid(f"give a workspaced.Owner(id=…, name=…): {wrong}") from None
