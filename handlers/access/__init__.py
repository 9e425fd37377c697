"""Who may connect to NATS and do what there: keys, permissions, accounts, and the auth callout."""
