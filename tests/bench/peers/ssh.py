"""`execute true` by ssh: an asyncssh server and its clients on loopback, each in a process of its own.

python ssh.py server            prints its port and public key
python ssh.py client ARGUMENTS  runs the commands and prints their times; ARGUMENTS is JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import asyncssh


class _Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False  # the measure is of commands, not of logins


async def _run(process: asyncssh.SSHServerProcess) -> None:
    local = await asyncio.create_subprocess_shell(
        process.command or "true",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    await process.redirect(stdout=local.stdout)
    process.exit(await local.wait())


async def _serve() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=_Server, server_host_keys=[key], process_factory=_run
    )
    sys.stdout.write(f"{server.get_port()}\n")
    sys.stdout.flush()
    await server.wait_closed()


async def _measure(port: int, chats: int, commands: int, alone: int) -> dict[str, Any]:
    connections = [
        await asyncssh.connect("127.0.0.1", port, known_hosts=None, username="x")
        for _ in range(chats)
    ]

    async def one(connection: asyncssh.SSHClientConnection) -> float:
        asked = time.perf_counter()
        done = await connection.run("true")
        assert done.exit_status == 0, done
        return (time.perf_counter() - asked) * 1000

    async def several(connection: asyncssh.SSHClientConnection) -> list[float]:
        return [await one(connection) for _ in range(commands)]

    single = [await one(connections[0]) for _ in range(alone)]
    began = time.perf_counter()
    many = await asyncio.gather(*map(several, connections))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return {"alone": single, "many": [ms for some in many for ms in some], "seconds": seconds}


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(_serve())
    else:
        sys.stdout.write(json.dumps(asyncio.run(_measure(**json.loads(sys.argv[2])))))
