"""Runs in a workspace: connects, runs its scripts, reports; outlives whoever started it."""
