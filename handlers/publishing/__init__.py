"""What provisioners and agents share as senders: facts that outlive them, and lines of a build's log."""

from handlers.publishing.build_log import BuildLog
from handlers.publishing.facts import FactMessage, deliver, new_fact, publish_once

__all__ = ["BuildLog", "FactMessage", "deliver", "new_fact", "publish_once"]
