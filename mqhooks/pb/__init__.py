"""The messages of VerneMQ's events sidecar, generated from ``proto/`` by ``make proto``."""
