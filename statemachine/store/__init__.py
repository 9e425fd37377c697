"""Where snapshots, logs, calls and the outbox are kept."""
