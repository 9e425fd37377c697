"""What provisioners and agents share as senders: facts that outlive them, and lines of a build's log."""

from handlers.publishing.backoff import Backoff, is_final
from handlers.publishing.build_log import BuildLog
from handlers.publishing.facts import Fact, deliver, new_fact, store

__all__ = ["Backoff", "BuildLog", "Fact", "deliver", "is_final", "new_fact", "store"]
