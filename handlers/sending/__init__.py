"""What provisioners and agents share as senders: facts that outlive them, and lines of a build's log."""

from handlers.sending.backoff import Backoff, is_final
from handlers.sending.facts import Fact, deliver, new_fact, store
from handlers.sending.log import BuildLog

__all__ = ["Backoff", "BuildLog", "Fact", "deliver", "is_final", "new_fact", "store"]
