"""Workers in the process of the tests, over in-memory adapters or real servers."""

from __future__ import annotations

import pytest

from handlers.worker import alarms, relay, worker
from handlers.worker.recovery import republisher
from tests.rigs.messages import new_id
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig()
    for module in (alarms, relay, republisher, worker):
        monkeypatch.setattr(module, "clock", rig.workers_clock)
    return await rig.open()


@pytest.fixture
def hand(rig: Rig) -> Hand:
    return rig.hand()


@pytest.fixture
def send(rig: Rig) -> Senders:
    return rig.senders


@pytest.fixture
def chat() -> str:
    return new_id()
