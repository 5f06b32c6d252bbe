"""The source that reads VerneMQ's events sidecar stream."""
