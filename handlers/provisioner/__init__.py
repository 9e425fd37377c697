"""The local provisioner: jobs in, builds run on this machine, facts out."""

from handlers.provisioner.provisioner import Provisioner
from handlers.provisioner.quota import QuotaLimits

__all__ = ["Provisioner", "QuotaLimits"]
