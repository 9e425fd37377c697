"""Matching of subjects and subscriptions, as NATS does it."""

from __future__ import annotations


def matches(pattern: str, subject: str) -> bool:
    """Return whether a subscription to `pattern` receives messages published on `subject`."""
    if pattern == subject:
        return True
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(w in ("*", t) for w, t in zip(wanted, tokens, strict=False))
