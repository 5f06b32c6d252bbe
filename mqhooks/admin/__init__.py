"""Seeing what mqhooks does, and having a hand in it: metrics, health, the status page and its API."""
