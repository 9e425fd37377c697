"""What keeps a role from its work for good, in words for the person at the keyboard."""

from __future__ import annotations


class CantServe(Exception):
    """The role can't do its work here; the message says what is wrong, where, and what to do."""
