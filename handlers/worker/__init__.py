"""The worker: facts and calls in, one transaction, effects out. Any number share the work."""
