"""Imports nats-py without its transport over WebSockets, until a URL asks for that.

nats-py imports aiohttp for it wherever aiohttp is installed, and aiohttp takes as long to import as all the rest of
an agent's bus. This module must be imported before nats-py is.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

_PACKAGES: Final = ("aiohttp", "multidict")
"""What nats-py imports for its transport over WebSockets."""
_MISSING: Final = [name for name in _PACKAGES if name not in sys.modules]

for _name in _MISSING:
    sys.modules[_name] = None  # type: ignore[assignment]  # this makes an import fail
try:
    from nats.aio import transport
finally:
    for _name in _MISSING:
        del sys.modules[_name]


def prepare_websockets(urls: str) -> None:
    """Import what nats-py needs to connect to `urls`, separated by commas, if one begins with ws:// or wss://.

    Without aiohttp, nats-py then says that it is missing.
    """
    if not any(url.strip().startswith(("ws://", "wss://")) for url in urls.split(",")):
        return
    for name in _PACKAGES:
        try:
            setattr(transport, name, importlib.import_module(name))
        except ImportError:
            return
