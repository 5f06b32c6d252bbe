"""The source that answers the gRPC calls of VerneMQ's events sidecar plugin. It needs the ``h2`` library."""
