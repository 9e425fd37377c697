"""Which names of this server, and which web pages, an HTTP interface accepts."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


class ForeignSite(Exception):
    """A request for a name that is not ours, or from a page that may not use this server; the text says which."""


@dataclass(frozen=True, slots=True)
class Site:
    """The names under which the interface is reached, and the web pages that may use it."""

    hosts: frozenset[str] = frozenset()
    """Further host names, without port, in lower case."""
    origins: frozenset[str] = frozenset()
    """Further origins, like `https://chat.example.com`, in lower case."""

    def check(
        self, *, host: str, origin: str | None, scheme: str, address: str | None
    ) -> str | None:
        """Return the origin that gets CORS answers, None without one. Raises ForeignSite.

        `address` is the address that the connection was made to. A page of another site must not use the interface
        through its visitor's browser, also not under a host name of its own that it lets point here.
        """
        if not self._is_ours(host, address):
            raise ForeignSite(
                f"Host {host!r} is not a name of this server: use its address, or add the name to "
                "WORKSPACED_HTTP_HOSTS"
            )
        if origin is None:
            return None
        own = f"{scheme}://{host}".lower()
        if origin.lower() != own and origin.lower() not in self.origins:
            raise ForeignSite(
                f"pages of {origin} may not use this server: add the origin to WORKSPACED_HTTP_ORIGINS"
            )
        return origin

    def _is_ours(self, host: str, address: str | None) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        here = {"localhost", *self.hosts}
        if address:
            here.add(address.lower())
        return name.lower() in here


def site(hosts: str | None, origins: str | None) -> Site:
    """Return the site of two settings: names and origins, each separated by commas."""
    return Site(frozenset(_words(hosts)), frozenset(word.rstrip("/") for word in _words(origins)))


def _words(text: str | None) -> list[str]:
    return [word.strip().lower() for word in (text or "").split(",") if word.strip()]
