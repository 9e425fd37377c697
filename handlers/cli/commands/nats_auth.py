"""`workspaced nats-auth`: credentials for a NATS of one's own, and the configuration that knows them."""

from __future__ import annotations

import sys

from handlers.access.identities import identities
from handlers.access.server_config import authorization
from handlers.settings import Settings


def show(settings: Settings) -> None:
    """Make the seeds that are not there yet, and print what nats-server must be told of them.

    Raises EmbeddedError when a file holds no seed.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = identities(settings.data_dir)
    sys.stdout.write(authorization(found))
    sys.stderr.write(f"The seeds are in {found.directory}; what is printed holds no secret.\n")
