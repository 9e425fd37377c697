"""Recovery from losses: NATS lost messages, or the database was restored from a backup.

- `stream_watch` finds out which streams lost messages, and blocks publishing until that is known.
- `republisher` publishes again from the database what the streams lost.
- `restore` brings a restored database up to what NATS still knows.
"""
