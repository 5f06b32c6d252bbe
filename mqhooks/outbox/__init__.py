"""The outbox: deliveries that are accepted and not yet settled, and dead letters."""
