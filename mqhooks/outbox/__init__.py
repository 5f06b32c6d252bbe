"""The outbox: what was accepted and is not yet settled, and dead letters."""
