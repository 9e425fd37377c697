"""Workers in the process of the tests, over in-memory adapters or real servers."""

from __future__ import annotations

import pytest

from tests.rigs.messages import new_id
from tests.worker.messages import Senders
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
