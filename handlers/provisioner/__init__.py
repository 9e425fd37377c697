"""The local provisioner: jobs in, builds run on this machine, facts out."""

from handlers.provisioner.provisioner import Provisioner

__all__ = ["Provisioner"]
