"""The local provisioner: it takes jobs, runs builds on its own machine, and reports facts."""

from handlers.provisioner.provisioner import Provisioner
from handlers.provisioner.quota import QuotaLimits

__all__ = ["Provisioner", "QuotaLimits"]
