"""Lines in nats-server's log that report that it can no longer store messages are recognized."""

from __future__ import annotations

from pathlib import Path

from handlers.embedded.disk_space import FullDiskMonitor

CLIENTS = """\
[27101] 2026/11/28 09:30:17.171918 [ERR] 127.0.0.1:51352 - cid:60 - "v2:python3:no space left on device" - \
"CHATS/nkey:UBIC" - Publish Violation - Subject "JetStream.DISABLED"
[27101] 2026/11/28 09:30:17.171919 [WRN] [::1]:51352 - wid:61 - "v2:js:out of resources" - Slow Consumer
"""
SERVERS = """\
[27101] 2026/11/28 09:30:18.000000 [ERR] JetStream failed to store a msg on stream 'APP > WORKSPACED_IN': \
no space left on device
"""


def test_text_chosen_by_clients_never_looks_like_a_full_disk(tmp_path: Path) -> None:
    """A client chooses its name and subjects freely, but must not be able to cause a restart."""
    (log := tmp_path / "nats.log").touch()
    watch = FullDiskMonitor(log, tmp_path)

    with log.open("a") as file:
        file.write(CLIENTS)
    assert watch._first_failure() is None
    with log.open("a") as file:
        file.write(SERVERS)
    assert "failed to store" in (watch._first_failure() or "")
