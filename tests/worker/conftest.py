"""A worker in this process for each test; real servers where that is the point."""

from __future__ import annotations

import pytest

from tests.worker.messages import Senders, new_id
from tests.worker.rig import Hand, Rig


@pytest.fixture
async def rig() -> Rig:
    return await Rig().open()


@pytest.fixture
def hand(rig: Rig) -> Hand:
    return rig.hand()


@pytest.fixture
def send(rig: Rig) -> Senders:
    return rig.senders


@pytest.fixture
def chat() -> str:
    return new_id()
