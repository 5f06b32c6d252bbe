"""Small helpers that several rooms use and that know nothing about webhooks."""
