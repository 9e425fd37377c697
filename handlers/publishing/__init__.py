"""What provisioners and agents share: facts and log lines that they publish, and files that they leave."""

from handlers.publishing.build_log import BuildLog
from handlers.publishing.facts import FactMessage, deliver, new_fact, publish_once

__all__ = ["BuildLog", "FactMessage", "deliver", "new_fact", "publish_once"]
