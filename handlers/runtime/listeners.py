"""Listeners: their addresses and certificates. Other machines may connect only over TLS."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from handlers.errors import InvalidSettings
from handlers.setting_flags import variable

if TYPE_CHECKING:  # agents use this module, and import no settings
    from handlers.settings import Settings

LOOPBACK: Final = "127.0.0.1"
"""The default address of every listener."""
_LOOPBACK_6: Final = "::1"
_ANY: Final = {"0.0.0.0": LOOPBACK, "::": _LOOPBACK_6}  # noqa: S104 — compared with, not bound to


@dataclass(frozen=True, slots=True)
class Certificate:
    """The TLS certificate of a listener and its private key, as PEM files."""

    file: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a listener of this process."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.file, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Listeners:
    """The addresses of the servers that `up` starts, and how clients reach them."""

    host: str = LOOPBACK
    """Address on which NATS accepts clients."""
    websocket_host: str = LOOPBACK
    name: str | None = None
    """Host name in the URL of NATS, which its certificate contains; None: the address."""
    port: int | None = None
    websocket_port: int | None = None
    http_host: str | None = None
    """Address of the health server; None: there is no health server."""
    http_port: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Host names that the operator gave, by the address each resolved to."""
    certificate: Certificate | None = None
    origins: tuple[str, ...] = ()
    """Origins of web pages that may use the WebSocket; empty: every origin."""
    ca: Path | None = None
    """CA certificates (PEM) with which local clients verify the certificate."""

    def url(self, scheme: str, host: str, port: int) -> str:
        """Return the URL of a listener on `host`; `scheme` is `nats`, `ws` or `http`."""
        named = self.name
        if self.certificate is not None:
            scheme = {"nats": "tls", "ws": "wss", "http": "https"}[scheme]
            named = named or self.names.get(host)
        reached = named or _ANY.get(host, host)
        return f"{scheme}://{f'[{reached}]' if ':' in reached else reached}:{port}"


def server_certificate(settings: Settings) -> Certificate | None:
    """Return the certificate of the settings, or None without TLS. Raises InvalidSettings."""
    file, key = settings.tls_certificate, settings.tls_key
    if file is None and key is None:
        return None
    if file is None or key is None:
        missing = variable("tls_key" if key is None else "tls_certificate")
        raise InvalidSettings(
            f"{missing} is missing: a certificate needs its private key, and the other way round"
        )
    certificate = Certificate(file.absolute(), key.absolute())
    try:
        certificate.context()
    except (OSError, ssl.SSLError) as error:
        raise InvalidSettings(
            f"{file} and {key} are not a certificate and its key in PEM: {error.strerror or error}"
        ) from error
    return certificate


def client_context(ca: Path | None) -> ssl.SSLContext | None:
    """Return a TLS context that verifies NATS with a CA bundle; None: with the system's CAs.

    Raises InvalidSettings.
    """
    if ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        raise InvalidSettings(
            f"WORKSPACED_NATS_CA: {ca} does not contain PEM certificates: {error.strerror or error}"
        ) from error


def listen_address(
    flag: str, host: str | None, certificate: Certificate | None, *, insecure: bool
) -> str:
    """Return the numeric address to listen on for the host that a flag names; None: loopback.

    A host with an address that is not a loopback address requires a certificate, unless `insecure`.
    Raises InvalidSettings.
    """
    if host is None:
        return next(filter(_can_be_bound, (LOOPBACK, _LOOPBACK_6)), LOOPBACK)
    addresses = _addresses(host.removeprefix("[").removesuffix("]"))
    if certificate is None and not insecure and not all(map(_is_loopback, addresses)):
        raise InvalidSettings(
            f"{flag} {host} can be reached from other machines, and without TLS others could read "
            "and change the traffic: give --tls-certificate and --tls-key, or keep the default "
            f"{LOOPBACK}, or give --insecure-no-tls if something else protects the connections"
        )
    # A name may have an IPv4 and an IPv6 address; a machine may support only one of them.
    return next(filter(_can_be_bound, addresses), addresses[0])


def is_host_name(host: str) -> bool:
    """Return whether a host is a name, not a numeric address."""
    return host[:1].isalpha() and ":" not in host


def address_family(address: str) -> socket.AddressFamily:
    """Return the address family of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _addresses(host: str) -> list[str]:
    """Return the numeric addresses of a host, or the host itself if it cannot be resolved."""
    always: list[str] = []
    if (name := host.lower().removesuffix(".")) == "localhost" or name.endswith(".localhost"):
        always = [LOOPBACK, _LOOPBACK_6]  # even if /etc/hosts says otherwise (RFC 6761)
    elif name in ("ip6-localhost", "ip6-loopback"):
        always = [_LOOPBACK_6]
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)  # noqa: S104
    except (OSError, UnicodeError):
        return always or [host]
    return list(dict.fromkeys([*(str(address[0]) for *_, address in found), *always]))


def _can_be_bound(address: str) -> bool:
    try:
        with socket.socket(address_family(address)) as tried:
            tried.bind((address, 0))
    except OSError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name without addresses now may get any address later
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback
