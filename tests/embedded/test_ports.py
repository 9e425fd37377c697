"""A port is chosen once, kept, and never taken from the range of outgoing connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from handlers.embedded import EmbeddedError
from handlers.embedded.errors import PortTaken
from handlers.embedded.ports import Ports


def test_a_port_is_the_same_again(tmp_path: Path) -> None:
    first = Ports(tmp_path).take("http")

    assert Ports(tmp_path).take("http") == first


def test_an_asked_port_is_kept_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    Ports(tmp_path).take("http", asked=port)

    assert Ports(tmp_path).take("http") == port


def test_uses_get_different_ports(tmp_path: Path) -> None:
    ports = Ports(tmp_path)
    taken = {ports.take(name) for name in ("nats", "websocket", "http")}

    assert len(taken) == 3


def test_a_new_port_is_below_those_of_outgoing_connections(tmp_path: Path) -> None:
    """A client that keeps trying a port of that range ends up connected to itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lowest <= 20_000:
        pytest.skip("this machine leaves no such ports")

    assert Ports(tmp_path).take("nats") < lowest


@pytest.mark.parametrize("port", [70_000, 2**40])
def test_a_number_that_is_no_port_is_refused_in_words(port: int, tmp_path: Path) -> None:
    with pytest.raises(PortTaken, match=rf"{port}.*can't be used.*--http-port"):
        Ports(tmp_path).take("http", asked=port, flag="--http-port")


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("[]")

    with pytest.raises(EmbeddedError, match=r"ports\.json"):
        Ports(tmp_path).take("http")
