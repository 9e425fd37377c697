"""Decides how strictly `data`, rpc bodies and tool arguments are read (contract, section 1).

Everything is first validated strictly. If that fails, the faults that the contract tolerates are
repaired, and the result is validated again. So a well-formed message costs no extra work.

`read` is for requests. It repairs only differences that do not change the meaning, such as `4.0`
for the integer 4 or null for an absent field, and refuses all other faults. `accept` is for the
facts of provisioners and agents, which must not be lost because of a faulty detail: it also leaves
out optional fields that cannot be used, and cuts texts that are too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from statemachine.events import INBOUND_CONTEXT, Frozen

JsonPath = tuple[str | int, ...]
"""The position of a value in a JSON document: keys of objects and indices of lists."""

Model = TypeVar("Model", bound=Frozen)

MOST_NAMED: Final = 20
"""Maximum number of wrong or changed fields that a message names individually."""
_LONGEST: Final = 300
"""Maximum number of characters in the description of one field. Keys may have any length."""
_MOST_FAULTS: Final = 4096
"""Maximum number of faults that are repaired individually."""
_ROUNDS: Final = 16
"""Maximum number of rounds of repair and validation.

Each round may move a fault one level outwards, and no model has this many levels.
"""
_BLANK: Final = frozenset(("string_pattern_mismatch", "string_too_short", "text_blank"))
"""The error types that pydantic reports for an empty id or text."""
_ENDS_KEPT: Final = frozenset(("error", "output", "reason"))
"""Keys of texts whose end is the most informative part. If they are too long, the beginning is cut
off."""
_DEFINING: Final = frozenset(("parent_id",))
"""Optional fields whose removal would change the meaning of their list entry."""
_MESSAGES: Final = {
    "missing": "is required",
    "string_type": "is not a text",
    "int_type": "is not an integer",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "tuple_type": "is not a list",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "string_too_short": "is empty",
    "extra_forbidden": "is not a key of this request",
}
_BOUNDS: Final = {
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
}
"""Error type of a number outside its range -> key of the limit in the error's context, and the text
for the message."""
_LONGEST_NUMBER: Final = 40
"""Maximum number of characters of a number that an error message repeats."""
_LARGE_POWER: Final = 53
_PATTERNS: Final[Mapping[str, str]] = {
    "{1,128}$": "must be 1 to 128 of A-Z, a-z, 0-9, _ and -",
    "-[0-9a-f]{12}$": "must be a lower-case UUID",
    "[0-7]{3,4}$": "must be three or four octal digits, for example 0644",
}
"""The end of a pattern -> the words for a text that does not match it."""
_LEFT_OUT: Final = ": left out"


class UnreadableError(ValueError):
    """An object cannot be read. The message names the wrong fields."""


def read(model: type[Model], body: object, root: str) -> Model:
    """Validate the object `body` of a request, and return it as a `model`.

    Error messages call the object `root`, for example `data`. Raises UnreadableError.
    """
    try:
        return model.model_validate(body, context=INBOUND_CONTEXT)
    except ValidationError as error:
        return _Repair(root, deepcopy(body), _required(model), forgiving=False).done(model, error)


@dataclass(frozen=True, slots=True)
class Accepted(Generic[Model]):
    """The accepted object of a fact, and the changes that were made to it."""

    value: Model
    changed: list[str]
    """A description of each change, for people."""
    beginnings_cut: frozenset[str] = frozenset()
    """Keys of texts whose beginning was cut off."""


def accept(
    model: type[Model], body: object, root: str, lost: Mapping[JsonPath, str]
) -> Accepted[Model]:
    """Validate the object `body` of a fact, and return it as a `model` with the changes made to it.

    `lost` describes, by path, the parts of the JSON that were replaced before because they cannot
    be stored. Error messages call the object `root`. Raises UnreadableError if a required field is
    missing or cannot be used.
    """
    try:
        return Accepted(model.model_validate(body, context=INBOUND_CONTEXT), list(lost.values()))
    except ValidationError as error:
        required, changed = _required(model), dict(lost)
        repair = _Repair(root, deepcopy(body), required, forgiving=True, changed=changed)
        value = repair.done(model, error)
        return Accepted(value, list(repair.changed.values()), frozenset(repair.beginnings_cut))


def unknown_keys(model: type[Frozen], body: Mapping[str, Any]) -> list[str]:
    """Return the keys of an object that the model does not have. A key that is null counts as absent."""
    return [
        key for key, value in body.items() if key not in model.model_fields and value is not None
    ]


def describe(invalid: ValidationError, root: str = "data") -> str:
    """Return one line that names the wrong fields, at most MOST_NAMED, and their faults."""
    errors = invalid.errors(include_url=False)[:MOST_NAMED]
    return "; ".join(_describe_error(error, spelled(root, error["loc"])) for error in errors)


def spelled(root: str, path: JsonPath) -> str:
    """Return a path as text, e.g. `data.agents[3].id`."""
    return root + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


def listed(messages: list[str]) -> str:
    """Join descriptions in one line. Those beyond the first MOST_NAMED are only counted."""
    more = len(messages) - MOST_NAMED
    named = [
        message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
        for message in messages[:MOST_NAMED]
    ]
    return "; ".join([*named, *([f"and {more} more"] if more > 0 else [])])


def _required(model: type[Frozen]) -> frozenset[str]:
    return frozenset(name for name, field in model.model_fields.items() if field.is_required())


@dataclass(slots=True)
class _Repair:
    """Repairs the object `body` in place."""

    root: str
    body: Any
    required: frozenset[str]
    """The required keys of the object itself, not of the objects in it."""
    forgiving: bool
    """Whether fields that cannot be used are left out, and texts that are too long are cut."""
    changed: dict[JsonPath, str] = field(default_factory=dict)
    """JsonPath in the object as it was received -> description of a change that may matter."""
    beginnings_cut: set[str] = field(default_factory=set)
    """Keys of texts whose beginning was cut off."""
    _indices: dict[int, list[int]] = field(default_factory=dict)
    """`id()` of a list from which entries were removed -> the original indices of the remaining
    entries."""

    def done(self, model: type[Model], invalid: ValidationError) -> Model:
        """Repair and validate the object until it is valid. Raises UnreadableError."""
        for _ in range(_ROUNDS):
            self._repair_all(invalid)
            try:
                return model.model_validate(self.body, context=INBOUND_CONTEXT)
            except ValidationError as error:
                invalid = error
        raise UnreadableError(describe(invalid, self.root))

    def _repair_all(self, invalid: ValidationError) -> None:
        """Repair the faults that one validation found.

        Raises UnreadableError if a fault cannot be repaired.
        """
        wrong: list[str] = []
        removed: set[JsonPath] = set()
        errors = invalid.errors(include_url=False)
        if self.forgiving and len(errors) > _MOST_FAULTS:  # an attack, not a mistake
            for key in {error["loc"][0] for error in errors if len(error["loc"]) > 1}:
                removed.add((key,))
                self.changed[(key,)] = f"{self.root}.{key} has too many faults{_LEFT_OUT}"
            errors = [error for error in errors if len(error["loc"]) == 1]
        for error in errors:
            if len(wrong) == MOST_NAMED:
                break
            origin = self._origin(error["loc"])
            message = _describe_error(error, spelled(self.root, origin))
            if not self._repair_one(error, message, removed):
                lacking = f"{spelled(self.root, origin)} {_MESSAGES['missing']}"
                description = self.changed.get(origin, lacking if _is_absent(error) else message)
                wrong.append(description.removesuffix(_LEFT_OUT))
        if wrong:
            raise UnreadableError(listed(wrong))
        inner = {path for path in removed if any(path[:n] in removed for n in range(len(path)))}
        # Remove later entries of a list first, so that the indices of earlier ones stay valid.
        for path in sorted(removed - inner, key=lambda path: [str(k).zfill(9) for k in path])[::-1]:
            self._leave_out(path)

    def _repair_one(self, error: ErrorDetails, message: str, removed: set[JsonPath]) -> bool:
        """Repair one error, or add the path that must be left out to `removed`.

        Return whether one of them is possible.
        """
        kind, path = error["type"], error["loc"]
        if kind == "missing" or not path:
            return self._escalate(path, message, removed)
        value, key = error["input"], path[-1]
        needed = len(path) == 1 and key in self.required
        if _is_absent(error) and isinstance(key, str) and not needed:
            removed.add(path)  # an absent field means the same
        elif kind == "int_type" and isinstance(value, float) and value.is_integer():
            self._holder(path)[key] = int(value)
        elif needed or not self.forgiving:
            return False
        elif kind == "text_too_long":
            limit, end = error["ctx"]["limit"], key in _ENDS_KEPT
            self._holder(path)[key] = _cut(value, limit, end=end)
            if end:
                self.beginnings_cut.add(str(key))
            self.changed[self._origin(path)] = f"{message}: cut"
        elif kind == "duplicate_ids":
            self._leave_out_duplicates(path)
        elif key in _DEFINING:
            return self._escalate(path, message, removed)
        else:
            removed.add(path)
            self.changed.setdefault(self._origin(path), f"{message}{_LEFT_OUT}")
        return True

    def _escalate(self, path: JsonPath, message: str, removed: set[JsonPath]) -> bool:
        """Leave out the object that contains `path`; return False if that is the whole object."""
        if not self.forgiving or len(path) < 2:  # noqa: PLR2004 — a field of the whole object
            return False
        holder = path[:-1]
        description = self.changed.pop(self._origin(path), message).removesuffix(_LEFT_OUT)
        name = spelled(self.root, self._origin(holder))
        self.changed.setdefault(self._origin(holder), f"{description}: {name} is left out")
        removed.add(holder)
        return True

    def _leave_out_duplicates(self, path: JsonPath) -> None:
        """Remove entries whose id an earlier entry has."""
        known: set[str] = set()
        duplicates: list[JsonPath] = []
        for index, entry in enumerate(self._at(path)):
            place = (*path, index)
            if entry["id"] in known:
                duplicates.append(place)
                name = spelled(self.root, self._origin(place))
                self.changed[self._origin(place)] = (
                    f"{name}.id was listed before: {name} is left out"
                )
            known.add(entry["id"])
        for place in reversed(duplicates):
            self._leave_out(place)

    def _leave_out(self, path: JsonPath) -> None:
        holder, key = self._holder(path), path[-1]
        if isinstance(holder, list) and isinstance(key, int):
            if id(holder) not in self._indices:
                self._indices[id(holder)] = list(range(len(holder)))
            self._indices[id(holder)].pop(key)
        del holder[key]

    def _at(self, path: JsonPath) -> Any:
        found = self.body
        for key in path:
            found = found[key]
        return found

    def _holder(self, path: JsonPath) -> Any:
        return self._at(path[:-1])

    def _origin(self, path: JsonPath) -> JsonPath:
        """Return the path that the value at `path` had in the object as it was received."""
        found, origin = self.body, list[str | int]()
        for key in path:
            known = self._indices.get(id(found))
            origin.append(known[key] if known is not None and isinstance(key, int) else key)
            present = isinstance(found, list) or (isinstance(found, dict) and key in found)
            found = found[key] if present else None
        return tuple(origin)


def _is_absent(error: ErrorDetails) -> bool:
    """Return whether the value means the same as an absent one: null, or an empty id or text."""
    return error["input"] is None or (error["input"] == "" and error["type"] in _BLANK)


def _cut(text: str, limit: int, *, end: bool) -> str:
    """Return the beginning or, with `end`, the end of a text: at most `limit` bytes of UTF-8."""
    encoded = text.encode()
    return (encoded[-limit:] if end else encoded[:limit]).decode(errors="ignore")


def _describe_error(error: ErrorDetails, name: str) -> str:
    """Describe an error of the field `name`."""
    kind = error["type"]
    if kind in _MESSAGES:
        return f"{name} {_MESSAGES[kind]}"
    if kind.startswith(("text_", "duplicate_")):
        return f"{name} {error['msg']}"
    if kind == "enum":
        return f"{name} is none of: {error['ctx']['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{name} {_pattern_message(error)}"
    if kind in _BOUNDS:
        key, comparison = _BOUNDS[kind]
        given = str(error["input"])[:_LONGEST_NUMBER]
        return f"{name} is {given}, but it must be {comparison} {_bound(error['ctx'][key])}"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"


def _bound(limit: float) -> str:
    """Return a limit for an error message, a large power of two also in the notation `2^n`."""
    power = int(limit).bit_length() - 1
    return f"2^{power} ({limit})" if power >= _LARGE_POWER and limit == 1 << power else str(limit)


def _pattern_message(error: ErrorDetails) -> str:
    pattern = error["ctx"]["pattern"]
    words = (words for end, words in _PATTERNS.items() if pattern.endswith(end))
    return next(words, f"does not match the pattern {pattern}")
