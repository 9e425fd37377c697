"""Code that all senders share: publishing of events and log lines, and their files on disk."""

from handlers.publishing.outgoing_events import OutgoingEvent, deliver, new_event, publish_once

__all__ = ["OutgoingEvent", "deliver", "new_event", "publish_once"]
