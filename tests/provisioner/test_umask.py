"""With a umask that removes the owner's rights, provisioner and agent refuse to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from handlers.errors import CannotServe
from tests.provisioner.conftest import Provisioning

ROOT = Path(__file__).parents[2]
WORDS = "the umask is 0777: it takes the owner's rights from every new file"


async def test_a_provisioner_rejects_a_umask_that_removes_owner_rights(
    provisioning: Provisioning,
) -> None:
    before = os.umask(0o777)
    try:
        with pytest.raises(CannotServe, match=WORDS):
            async with provisioning():
                pass
    finally:
        os.umask(before)


def test_an_agent_rejects_a_umask_that_removes_owner_rights(tmp_path: Path) -> None:
    started = subprocess.run(
        [sys.executable, "-P", "-m", "handlers.agent", str(tmp_path / "config.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        umask=0o777,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert started.returncode == 1
    assert WORDS in started.stderr
