"""One `workspaced up` for all commands that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rigs.processes import Up, up


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("cli") / "data", empty=True) as running:
        yield running
