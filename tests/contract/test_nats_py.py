"""Canaries for nats-py: each private name that bus/nats_client.py uses still means the same.

When one fails after an upgrade of nats-py: read the new code of that name in nats/aio/client.py,
adapt bus/nats_client.py, run tests/contract and tests/outages, and update the expectation here.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nats.micro.service
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from nats.protocol import command

import bus
from bus.nats_client import NatsClient
from bus.services import QUEUE

SOURCE = Path(bus.__file__).parent / "nats_client.py"
ATTRIBUTES = {
    "_server_info": dict,
    "_max_payload": int,
    "_pending": list,
    "_pending_data_size": int,
    "_sid": int,
    "_subs": dict,
    "_pongs": list,
    "_pings_outstanding": int,
    "_current_server": type(None),
    "_transport": type(None),
    "_flush_queue": type(None),
}
"""Private attributes of a client before it connects, and their types."""
METHODS = {
    "_process_msg": "6cff75947e97717a",
    "_process_info": "ecca7bb931308fff",
    "_process_connect_init": "e1ed2da075c82ab0",
    "_process_pong": "ee4c4d01a16de074",
    "_send_ping": "d57b2f820443afb4",
    "_process_err": "ceb70f44e38fa728",
    "_process_op_err": "d4257cb1203cdbcb",
    "request": "5b1b97e620daed80",
}
"""The overridden methods, with a digest of the source of each."""


def differs(name: str) -> str:
    return (
        f"nats-py {version('nats-py')} has another `{name}` than the one that bus/nats_client.py was "
        "written for: see the docstring of tests/contract/test_nats_py.py"
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
async def test_a_private_attribute_of_the_client_is_what_it_was(name: str) -> None:
    assert type(getattr(Client(), name, "missing")) is ATTRIBUTES[name], differs(name)


@pytest.mark.parametrize("name", METHODS)
def test_an_overridden_method_of_the_client_is_what_it_was(name: str) -> None:
    source = inspect.getsource(getattr(Client, name)) if hasattr(Client, name) else "missing"

    assert hashlib.sha256(source.encode()).hexdigest()[:16] == METHODS[name], differs(name)


def test_a_request_of_a_micro_service_holds_its_message() -> None:
    message = Msg(Client.__new__(Client), "subject", "reply", b"data")

    assert getattr(Request(message), "_msg", None) is message, differs("Request._msg")


def test_the_queue_group_of_micro_services_is_what_it_was() -> None:
    assert nats.micro.service.DEFAULT_QUEUE_GROUP == QUEUE, differs("DEFAULT_QUEUE_GROUP")


def test_the_commands_that_publish_are_what_they_were() -> None:
    assert command.pub_cmd("s", "r", b"data") == b"PUB s r 4\r\ndata\r\n"
    assert command.hpub_cmd("s", "r", b"head", b"data") == b"HPUB s r 4 8\r\nheaddata\r\n"


async def test_a_subscription_gets_the_next_number(nats_server: Any) -> None:
    client = Client()
    await client.connect(nats_server.url, connect_timeout=5)
    try:
        expected = client._sid + 1
        await client.subscribe("canary")
        assert list(client._subs) == [expected], differs("_sid")
        assert isinstance(client._flush_queue, asyncio.Queue), differs("_flush_queue")
        assert hasattr(client._transport, "writelines"), differs("_transport")
    finally:
        await client.close()


def test_the_canaries_cover_every_private_name_that_is_used() -> None:
    tree = ast.parse(SOURCE.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr)
    }
    own = {name for name in vars(NatsClient) if not hasattr(Client, name)}
    own |= {
        node.attr
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
    }

    assert used - own == {*ATTRIBUTES, *METHODS, "_msg"} - {"request"}


async def test_no_name_of_ours_hides_one_of_nats_py() -> None:
    theirs = {*vars(Client()), *dir(Client)}
    ours = {*vars(NatsClient()), *vars(NatsClient)} - {*vars(Client()), *dir(object)}

    hidden = {name for name in ours & theirs if not name.startswith("__")}
    assert hidden == set(METHODS)


def test_no_other_module_uses_private_names_of_nats_py() -> None:
    names = re.compile(rf"\.({'|'.join({*ATTRIBUTES, *METHODS, '_msg'} - {'request'})})\b")
    knows_nats_py = re.compile(r"^(from|import) (nats\b|bus\.nats_client)", re.MULTILINE)
    texts = {
        path.name: path.read_text()
        for folder in ("bus", "handlers")
        for path in (SOURCE.parents[1] / folder).rglob("*.py")
    }

    users = [name for name, text in texts.items() if knows_nats_py.search(text)]
    assert [name for name in users if names.search(texts[name])] == [SOURCE.name]
