"""`workspaced …`: flags apart from what they start, so that `--help` is quick."""

from handlers.cli.dispatch import main
from handlers.cli.words import ORGANIZATION, OWNER

__all__ = ["ORGANIZATION", "OWNER", "main"]
