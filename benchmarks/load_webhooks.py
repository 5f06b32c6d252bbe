"""
Generating the load of VerneMQ's own webhooks: a request for each event over 50 connections, as fast as they are answered.

``python -m benchmarks.load_webhooks --port 8892 --events 50000`` prints the line of JSON that :mod:`benchmarks.load` prints. It
ends at any answer other than 200.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import time
from base64 import b64encode
from collections.abc import Iterator

from benchmarks.load import MARK, SMALLEST

CONNECTIONS = 50
"""VerneMQ 2.2's connections to one host and port; each client has one request in flight."""

CLIENTS = 1000

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Caller:
    """
    One connection, and the clients that take turns on it.

    :param clients: the clients' numbers.
    :param numbers: the numbers of the events still to be sent; all callers take from it.
    :param size: bytes of a payload.
    """

    def __init__(self, port: int, clients: range, numbers: Iterator[int], size: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients = clients
        self._numbers = numbers
        self._size = size
        self._turn = 0
        self._answer = b""

    def call(self) -> bool:
        """Send the next event, and return whether there was one."""
        number = next(self._numbers, None)
        if number is None:
            return False
        client = b"%06d" % self._clients[self._turn % len(self._clients)]
        self._turn += 1
        payload = b64encode((MARK + b"%010d%b%020d" % (number, client, 0)).ljust(self._size, b"x"))
        body = (
            b'{"username":"sensor","mountpoint":"","client_id":"client-%b","qos":1,"topic":"sensors/hall/temperature",'
            b'"payload":"%b","retain":false}' % (client, payload)
        )
        head = (
            b"POST /vernemq HTTP/1.1\r\nContent-Type: application/json\r\nvernemq-hook: on_publish\r\n"
            b"Host: 127.0.0.1\r\nUser-Agent: hackney/4.7.4\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        self.socket.sendall(head + body)
        return True

    def answered(self) -> bool:
        """Read from the socket, and return whether the answer is complete."""
        self._answer += self.socket.recv(1 << 16)
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"answered {head!r}")
        self._answer = b""
        return True


def main() -> None:
    """Read the command line, and make the requests."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_webhooks")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--size", type=int, default=100, help="bytes of a payload")
    options = parser.parse_args()
    if options.size < SMALLEST:
        parser.error(f"--size: a payload has {SMALLEST} bytes at least")
    numbers = iter(range(options.events))
    callers = [Caller(options.port, range(index, CLIENTS, CONNECTIONS), numbers, options.size) for index in range(CONNECTIONS)]
    print(json.dumps({"began": time.monotonic_ns()}), flush=True)
    selector = selectors.DefaultSelector()
    for caller in callers:
        if caller.call():
            selector.register(caller.socket, selectors.EVENT_READ, caller)
    while selector.get_map():
        for key, _ in selector.select():
            caller = key.data
            if caller.answered() and not caller.call():
                selector.unregister(caller.socket)


if __name__ == "__main__":
    main()
