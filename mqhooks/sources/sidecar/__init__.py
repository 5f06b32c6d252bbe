"""The way in: VerneMQ's events sidecar stream, decoded."""
