"""The parts of nats-py that the client uses, without its transport over WebSockets until a URL asks for that.

nats-py imports aiohttp for that transport wherever aiohttp is installed, and aiohttp takes as long to import as all the
rest of an agent's bus. So every module that uses nats-py imports this one first.
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
    from nats import errors
    from nats.aio import transport
    from nats.aio.client import Client
    from nats.aio.msg import Msg
finally:
    for _name in _MISSING:
        del sys.modules[_name]

__all__ = ["Client", "Msg", "errors", "prepare_websockets"]


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
