"""What all senders share: the events and log lines that they publish, and the files that they leave."""

from handlers.publishing.build_log import BuildLog
from handlers.publishing.outgoing_events import OutgoingEvent, deliver, new_event, publish_once

__all__ = ["BuildLog", "OutgoingEvent", "deliver", "new_event", "publish_once"]
