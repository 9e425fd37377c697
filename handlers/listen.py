"""Where listeners listen, and that nobody listens on the way: TLS, or this machine only."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from handlers.settings import InvalidSettings, Settings, variable

LOOPBACK: Final = "127.0.0.1"
"""Where everything listens that was not told otherwise."""
_LOOPBACK_6: Final = "::1"
_ANY: Final = {"0.0.0.0": LOOPBACK, "::": _LOOPBACK_6}  # noqa: S104 — recognised, not bound


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a listener shows of itself."""

    file: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return what a listener in this process speaks TLS with."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.file, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the servers of `up` are to be reached, and how."""

    host: str = LOOPBACK
    """Of NATS for its clients."""
    websocket_host: str = LOOPBACK
    name: str | None = None
    """By which clients reach NATS, as its certificate says; none: the address itself."""
    port: int | None = None
    websocket_port: int | None = None
    http_host: str | None = None
    """Of HTTP; None: nothing listens there."""
    http_port: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """What the operator called an address, by the address: its certificate may name that."""
    certificate: Certificate | None = None
    origins: tuple[str, ...] = ()
    """Web pages that may use the websocket; none: any that has a credential."""
    ca: Path | None = None
    """Who signed the certificate, told to those who look for the running servers."""

    def url(self, scheme: str, host: str, port: int) -> str:
        """Return a URL of a listener on `host`; `scheme` is the one without TLS."""
        named = self.name
        if self.certificate is not None:
            scheme = {"nats": "tls", "ws": "wss", "http": "https"}[scheme]
            named = named or self.names.get(host)
        reached = named or _ANY.get(host, host)
        return f"{scheme}://{f'[{reached}]' if ':' in reached else reached}:{port}"


def certificate_of(settings: Settings) -> Certificate | None:
    """Return the certificate that listeners show, if there is to be TLS. Raises InvalidSettings."""
    file, key = settings.tls_certificate, settings.tls_key
    if file is None and key is None:
        return None
    if file is None or key is None:
        missing = variable("tls_key" if key is None else "tls_certificate")
        raise InvalidSettings(f"{missing} is missing: a certificate and its key go together")
    certificate = Certificate(file.absolute(), key.absolute())
    try:
        certificate.context()
    except (OSError, ssl.SSLError) as bad:
        raise InvalidSettings(
            f"{file} and {key} are no certificate and its key in PEM: {bad.strerror or bad}"
        ) from bad
    return certificate


def trust(ca: Path | None) -> ssl.SSLContext | None:
    """Return whom a client believes who NATS is; None: whom this machine believes.

    Raises InvalidSettings.
    """
    if ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as bad:
        raise InvalidSettings(
            f"WORKSPACED_NATS_CA: {ca} holds no certificates in PEM: {bad.strerror or bad}"
        ) from bad


def address_of(
    flag: str, host: str | None, certificate: Certificate | None, *, insecure: bool
) -> str:
    """Return the address to listen on for what a flag names; None: this machine only.

    What leaves this machine must not be readable on its way. Raises InvalidSettings.
    """
    if host is None:
        return next(filter(_can_be_bound, (LOOPBACK, _LOOPBACK_6)), LOOPBACK)
    addresses = _addresses(host.removeprefix("[").removesuffix("]"))
    if certificate is None and not insecure and not all(map(_is_loopback, addresses)):
        raise InvalidSettings(
            f"{flag} {host} can be reached from other machines, and without TLS anybody on the way "
            "can read and change what passes: name --tls-certificate and --tls-key, or leave it at "
            f"{LOOPBACK}, or say --insecure-no-tls if something else guards the way"
        )
    # The name may lead to several; a machine without IPv4, or without IPv6, has only some of them.
    return next(filter(_can_be_bound, addresses), addresses[0])


def is_name(host: str) -> bool:
    """Tell a name from a numeric address."""
    return host[:1].isalpha() and ":" not in host


def family_of(address: str) -> socket.AddressFamily:
    """Return the kind of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _addresses(host: str) -> list[str]:
    """Return the numeric addresses that a host has, or the host itself if none are known."""
    always: list[str] = []
    if (name := host.lower().removesuffix(".")) == "localhost" or name.endswith(".localhost"):
        always = [LOOPBACK, _LOOPBACK_6]  # whatever this machine's list of names says (RFC 6761)
    elif name in ("ip6-localhost", "ip6-loopback"):
        always = [_LOOPBACK_6]
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)  # noqa: S104
    except (OSError, UnicodeError):
        return always or [host]
    return list(dict.fromkeys([*(str(address[0]) for *_, address in found), *always]))


def _can_be_bound(address: str) -> bool:
    try:
        with socket.socket(family_of(address)) as tried:
            tried.bind((address, 0))
    except OSError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name that nobody knows may lead anywhere later
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback
