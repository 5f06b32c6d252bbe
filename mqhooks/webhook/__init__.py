"""The webhook sink: bodies become HTTP requests, which are retried until they arrive."""
