"""A port is chosen once and kept, and is never in the range of outgoing connections."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from handlers.embedded import EmbeddedError
from handlers.embedded.ports import PortRequest, Ports
from handlers.errors import PortTaken

USES = ("nats", "websocket", "http")


def take(directory: Path, *names: str, **asked: int) -> dict[str, int]:
    """Return ports for these listeners, or for all three."""
    return Ports(directory).take(
        [PortRequest(name, f"--{name}-port", port=asked.get(name)) for name in names or USES]
    )


def free(number: int) -> list[int]:
    """Return ports that are free at the moment."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def kept(directory: Path) -> dict[str, int] | None:
    file = directory / "ports.json"
    return json.loads(file.read_bytes()) if file.exists() else None


def test_a_port_stays_the_same(tmp_path: Path) -> None:
    assert take(tmp_path) == take(tmp_path) == kept(tmp_path)


def test_a_requested_port_is_kept(tmp_path: Path) -> None:
    (port,) = free(1)
    take(tmp_path, "http", http=port)

    assert take(tmp_path, "http") == {"http": port}


def test_listeners_get_different_ports(tmp_path: Path) -> None:
    assert len(set(take(tmp_path).values())) == len(USES)


def test_the_same_port_twice_is_refused_and_not_kept(tmp_path: Path) -> None:
    (port,) = free(1)
    for pair in (("nats", "websocket"), ("websocket", "http"), ("nats", "http")):
        with pytest.raises(
            PortTaken, match=rf"{port} is given by --{pair[0]}-port and --{pair[1]}"
        ):
            take(tmp_path, **dict.fromkeys(pair, port))

    assert kept(tmp_path) is None
    take(tmp_path)


@pytest.mark.parametrize("asking", USES)
def test_a_port_kept_for_another_listener_is_refused(asking: str, tmp_path: Path) -> None:
    before = take(tmp_path)
    for other in set(USES) - {asking}:
        for names in (USES, (asking,)):
            with pytest.raises(PortTaken, match=rf"ports\.json .*--{asking}-port"):
                take(tmp_path, *names, **{asking: before[other]})

    assert take(tmp_path) == before


def test_two_listeners_may_exchange_their_ports(tmp_path: Path) -> None:
    before = take(tmp_path)
    after = take(tmp_path, nats=before["http"], http=before["nats"])

    assert (after["nats"], after["http"]) == (before["http"], before["nats"])
    assert take(tmp_path) == after


def test_no_port_is_kept_if_one_of_them_is_taken(tmp_path: Path) -> None:
    before = take(tmp_path)
    (port,) = free(1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        held = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {held} \(http\) is held.*--http-port"):
            take(tmp_path, nats=port, http=held)

    assert take(tmp_path) == before


def test_an_old_file_with_a_duplicate_port_is_reported_with_a_remedy(tmp_path: Path) -> None:
    port, another = free(2)
    (tmp_path / "ports.json").write_text(json.dumps({"nats": port, "websocket": port}))

    with pytest.raises(PortTaken, match=r"ports\.json .*--nats-port or --websocket-port"):
        take(tmp_path)

    assert take(tmp_path, websocket=another)["websocket"] == another
    assert take(tmp_path)["nats"] == port


def test_a_new_port_is_below_those_of_outgoing_connections(tmp_path: Path) -> None:
    """A client that keeps trying a port of that range can connect to itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lowest <= 20_000:
        pytest.skip("this machine leaves no such ports")

    assert take(tmp_path, "nats")["nats"] < lowest


def test_a_port_is_found_where_the_range_of_outgoing_connections_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some sandboxes have no /proc/sys/net."""
    monkeypatch.setattr("handlers.embedded.ports._OUTGOING", tmp_path / "nothing")

    port = take(tmp_path, "nats")["nats"]

    assert 20_000 <= port < 32_768


@pytest.mark.parametrize("port", [70_000, 2**40])
def test_an_invalid_port_number_is_reported(port: int, tmp_path: Path) -> None:
    with pytest.raises(PortTaken, match=rf"{port}.*can't be used.*--http-port"):
        take(tmp_path, "http", http=port)


def test_a_malformed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("[]")

    with pytest.raises(EmbeddedError, match=r"ports\.json"):
        take(tmp_path)
