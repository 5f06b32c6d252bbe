"""Ports that are closed, or that are opened again."""

from socket import SO_REUSEADDR, SOL_SOCKET, socket


def kept_port(case):
    """
    Find a port of 127.0.0.1 that refuses connections until the test case listens on it, and again when it listens no more.

    :param case: the test case; nobody else is given the port before it ends.
    """
    # It is bound and does not listen, so the system gives it neither to a listener nor to an outgoing connection.
    kept = socket()
    case.addCleanup(kept.close)
    # As Twisted's listeners have it: both may be bound.
    kept.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept.getsockname()[1]
