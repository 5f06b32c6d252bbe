"""Reserving a port that can be closed and opened again."""

from socket import SO_REUSEADDR, SOL_SOCKET, socket


def kept_port(case):
    """
    Find a port of 127.0.0.1 that refuses connections whenever the test case does not listen on it.

    :param case: the test case; nobody else gets the port before it ends.
    """
    # The socket is bound and does not listen, so the system gives the port neither to a listener nor to an outgoing connection.
    kept = socket()
    case.addCleanup(kept.close)
    # Twisted's listeners set it too, so both may be bound.
    kept.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept.getsockname()[1]
