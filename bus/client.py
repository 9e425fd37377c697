"""nats-py's client, mended where it opens a connection and where it flushes.

* A server that offers no TLS where it is wanted is not spoken to; nats-py would go on without.
* A socket on which a connection did not come about is closed.
* A flush really follows what was sent before it (nats-py's PING overtakes its own queue), and one
  that was cancelled does not kill the read loop when its PONG comes.
"""

from __future__ import annotations

from asyncio import Future
from typing import Any, Final

import nats.errors
from nats.aio.client import Client

NO_TLS: Final = "the server offers no TLS"
"""Why a connection ends that is to be secret."""


class MendedClient(Client):
    """The same client, by its own rules."""

    def __init__(self, *, secret: bool) -> None:
        super().__init__()
        self._secret = secret
        """Whether to speak with a server over TLS or not at all."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        plain = self._current_server is not None and self._current_server.uri.scheme != "wss"
        if self._secret and plain and initial_connection and not info.get("tls_required"):
            # nats-py would go on without: whoever is on the way could have it so.
            raise nats.errors.Error(NO_TLS)
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            if self._transport is not None:
                # nats-py leaves it open, and opens another.
                self._transport.close()  # type: ignore[no-untyped-call]
                if self._current_server and self._current_server.uri.scheme in ("nats", "tls"):
                    # After a TLS handshake that failed, its end could be awaited for ever.
                    self._transport = None
            raise

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _send_ping(self, future: Future[Any] | None = None) -> None:
        if self._transport is not None and self._pending:
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0
        await super()._send_ping(future)
