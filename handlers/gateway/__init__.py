"""The gateway role: it answers rpcs, and it decides which issued keys may connect to NATS."""
