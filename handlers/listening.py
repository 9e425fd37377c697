"""Where listeners listen, and that nobody listens on the way: TLS, or this machine only."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handlers.settings import InvalidSettings, Settings, variable

LOOPBACK: Final = "127.0.0.1"
"""Where everything listens that was not told otherwise."""
_ANY: Final = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 — recognised, not bound


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
    certificate: Certificate | None = None
    origins: tuple[str, ...] = ()
    """Web pages that may use the websocket; none: any that has a credential."""
    ca: Path | None = None
    """Who signed the certificate, told to those who look for the running servers."""

    def url(self, scheme: str, host: str, port: int) -> str:
        """Return a URL of a listener on `host`; `scheme` is the one without TLS."""
        if self.certificate is not None:
            scheme = {"nats": "tls", "ws": "wss", "http": "https"}[scheme]
        reached = self.name or _ANY.get(host, host)
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


def guard(flag: str, host: str, certificate: Certificate | None, *, insecure: bool) -> None:
    """See to it that what leaves this machine can't be read on its way. Raises InvalidSettings."""
    if certificate is None and not insecure and not _is_loopback(host):
        raise InvalidSettings(
            f"{flag} {host} can be reached from other machines, and without TLS anybody on the way "
            "can read and change what passes: name --tls-certificate and --tls-key, or leave it at "
            f"{LOOPBACK}, or say --insecure-no-tls if something else guards the way"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may lead anywhere
