"""Requests in other shapes than NanoMQ's: templates for URLs, headers and bodies, and CloudEvents. No reactor is needed."""
