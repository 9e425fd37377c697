"""URLs of servers may contain passwords: remove them before a URL is logged or passed on."""

from __future__ import annotations

import re
from typing import Final

_USERINFO: Final = re.compile(r"(?P<scheme>\w+://)(?P<user>(?:(?!,\w+://)\S)*)@")
"""Up to the last `@` before the next URL: an unescaped password may contain `/`, `#`, `,` or `@`."""
_QUERY: Final = re.compile(r"(?i)(?P<key>[?&](?:password|sslpassword|passfile|token)=)[^&\s]*")


def redacted(text: str) -> str:
    """Return the text with `***` in place of each password in its URLs; commas may separate URLs."""
    return _QUERY.sub(r"\g<key>***", _USERINFO.sub(_without_password, text))


def anonymous(urls: str) -> str:
    """Return NATS URLs without user and password, for processes that have their own credentials."""
    return _USERINFO.sub(r"\g<scheme>", urls)


def scheme(urls: str) -> str:
    """Return the scheme of the first URL in lower case; nats-py requires one scheme for all."""
    first, found, _ = urls.partition("://")
    return first.lower() if found else "nats"


def _without_password(found: re.Match[str]) -> str:
    user, colon, _ = found["user"].partition(":")
    # In a NATS URL a user without password may be a token, which is secret; in a database URL it is a name.
    if not colon and not found["scheme"].startswith("postgres"):
        user, colon = "***", ""
    return f"{found['scheme']}{user}{':***' if colon else ''}@"
