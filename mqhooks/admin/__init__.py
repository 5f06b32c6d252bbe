"""Metrics, health checks, the status page and its API."""
