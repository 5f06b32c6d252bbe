"""
A client for NATS and JetStream. It knows nothing of mqhooks.

:class:`~mqhooks.nats.client.NATSClient` keeps one connection to any of several servers.
:class:`~mqhooks.nats.jetstream.JetStream` makes JetStream's requests over it.
"""
