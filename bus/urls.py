"""URLs that may carry a password: what of them may be shown, and what may be handed on."""

from __future__ import annotations

import re
from typing import Final

_USERINFO: Final = re.compile(r"(?P<scheme>\w+://)(?P<user>(?:(?!,\w+://)\S)*)@")
"""Up to the last `@` before the next URL: a password that was not escaped may hold `/`, `#`, `,` or
another `@`."""
_QUERY: Final = re.compile(r"(?i)(?P<key>[?&](?:password|sslpassword|passfile|token)=)[^&\s]*")


def redacted(text: str) -> str:
    """Return words or URLs, several with commas between, with `***` for each password."""
    return _QUERY.sub(r"\g<key>***", _USERINFO.sub(_without_password, text))


def anonymous(urls: str) -> str:
    """Return NATS URLs without user and password, for those whom they are no business of."""
    return _USERINFO.sub(r"\g<scheme>", urls)


def scheme(urls: str) -> str:
    """Return the scheme of the first URL, in lower case; nats-py wants all of one kind."""
    first, found, _ = urls.partition("://")
    return first.lower() if found else "nats"


def _without_password(found: re.Match[str]) -> str:
    user, colon, _ = found["user"].partition(":")
    # A user alone may be a token, which is a secret; in a database's URL it is but a name.
    if not colon and not found["scheme"].startswith("postgres"):
        user, colon = "***", ""
    return f"{found['scheme']}{user}{':***' if colon else ''}@"
