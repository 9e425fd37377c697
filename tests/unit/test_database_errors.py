"""Each known database error is attributed to its cause: the database, the data, or a bug."""

from __future__ import annotations

import asyncpg
import pytest
from asyncpg import exceptions

from statemachine.store import StoreUnavailableError, TransientError, WorkRefusedError
from statemachine.store.database import classify_error, translate_errors

ALL = sorted(
    {
        found
        for found in vars(exceptions).values()
        if isinstance(found, type)
        and issubclass(found, asyncpg.PostgresError)
        and getattr(found, "sqlstate", None)
    },
    key=lambda found: (str(found.sqlstate), found.__name__),
)


@pytest.mark.parametrize("error", ALL, ids=lambda error: f"{error.sqlstate}-{error.__name__}")
def test_only_sqlstate_classes_about_data_blame_the_data(
    error: type[asyncpg.PostgresError],
) -> None:
    found = classify_error(error("words"))

    if str(error.sqlstate)[:2] in ("21", "22", "23", "54"):
        assert found is None
    else:
        assert isinstance(found, StoreUnavailableError)


def test_the_classification_covers_errors_of_every_kind() -> None:
    assert len(ALL) > 200


@pytest.mark.parametrize("state", ["P0001", "XX000", "99999", "HV000", "42P01", "42P05", "26000"])
def test_other_errors_of_the_server_refuse_this_transaction_for_now(state: str) -> None:
    error = asyncpg.PostgresError.new({"C": state, "M": "words"})

    assert type(classify_error(error)) is WorkRefusedError
    assert state in str(classify_error(error))


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57014", "25P03", "25P04"])
def test_locks_and_timeouts_are_transient_errors(state: str) -> None:
    assert (
        type(classify_error(asyncpg.PostgresError.new({"C": state, "M": "words"})))
        is TransientError
    )


@pytest.mark.parametrize("state", ["08006", "25006", "28P01", "3D000", "53100", "57P01", "58030"])
def test_errors_about_the_server_make_the_store_unavailable(state: str) -> None:
    error = asyncpg.PostgresError.new({"C": state, "M": "words"})

    assert type(classify_error(error)) is StoreUnavailableError


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        OSError("no route"),
        EOFError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state"),
    ],
)
def test_lost_connections_make_the_store_unavailable(error: Exception) -> None:
    with pytest.raises(StoreUnavailableError), translate_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        ValueError("a bug"),
        exceptions._base.DataError("invalid input for query argument $1"),
    ],
)
def test_bugs_and_values_that_the_driver_can_not_encode_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)), translate_errors():
        raise error
