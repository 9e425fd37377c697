"""mypy checks the fields that `msgspec.structs.replace` is given."""

from __future__ import annotations

from pathlib import Path

from mypy import api

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PLANTED = """
from msgspec.structs import replace
from statemachine.chat import Chat

chat = replace(Chat(chat_id="c"), version=1)
replace(chat, verison=2)
replace(chat, version="2")
"""


def test_a_wrong_field_and_a_wrong_type_are_found(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED)

    found, _, status = api.run(["--config-file", str(PYPROJECT), str(planted)])

    assert status == 1
    assert 'Unexpected keyword argument "verison"' in found
    assert 'Argument "version" to "replace" has incompatible type "str"' in found
    assert "Found 2 errors" in found
