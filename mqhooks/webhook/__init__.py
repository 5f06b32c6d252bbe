"""The way out: bodies become HTTP requests that are tried until they arrive."""
