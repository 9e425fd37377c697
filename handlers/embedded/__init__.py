"""PostgreSQL and nats-server as child processes, for `workspaced up` and the tests."""

from handlers.embedded.servers import Servers, embedded_servers, running_servers
from handlers.errors import DataDirectoryInUse, EmbeddedError

__all__ = ["DataDirectoryInUse", "EmbeddedError", "Servers", "embedded_servers", "running_servers"]
