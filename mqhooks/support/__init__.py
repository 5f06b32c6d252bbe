"""Small helpers that several rooms use and that know nothing of webhooks."""
