"""
The endpoint: takes every request as fast as it can, and counts the events in them.

``python -m benchmarks.receiver --port 8080 --events 100000`` prints ``{"ready": true}`` once it listens, and one line of JSON
for each line that it reads. It ends at the end of its standard input.

It is a loop around ``epoll`` that cuts requests by their ``content-length`` and answers all with the same 204. A request is one
event, an array, or lines of JSON, compressed or not. Its events are found by their mark, when no requests are coming, so the
report may be a little behind.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import select
import socket
import ssl
import sys
import time
from array import array
from collections import deque
from contextlib import suppress
from typing import Any

from benchmarks.load import MARK

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
READ = 256 << 10

KEPT = 256 << 20
"""Most bytes of requests that are kept before the events in them are counted."""

QUIET = 0.1
"""Seconds without a request until the kept ones are counted."""

AT_ONCE = 16
"""Requests that are counted between two looks at the connections."""


class Tally:
    """
    Counts the events that have come.

    :param events: number of events expected; their numbers are below it.
    :ivar came: when the last request came, in nanoseconds of the monotonic clock.
    :ivar requests: requests counted.
    :ivar distinct: different events in them.
    :ivar twice: repeated arrivals of events.
    :ivar late: first arrivals of events after a later one of the same client.
    """

    def __init__(self, events: int) -> None:
        self._kept: deque[tuple[bytes, bool, int]] = deque()
        self._size = 0
        self._seen = bytearray(events)
        self._newest: dict[bytes, int] = {}
        self._took = array("d")
        self.requests = self.distinct = self.twice = self.late = 0
        self.first = self.last = self.came = 0

    def take(self, body: bytes, now: int, *, compressed: bool) -> None:
        """
        Keep a request, to count its events later.

        :param now: when it came, in nanoseconds of the monotonic clock.
        """
        self.came = now
        self._kept.append((body, compressed, now))
        self._size += len(body)
        while self._size > KEPT:
            self.count(1)

    def count(self, most: int) -> bool:
        """
        Count the events in requests that were kept.

        :param most: most requests to count.
        :returns: whether more are left.
        """
        for _ in range(min(most, len(self._kept))):
            body, compressed, now = self._kept.popleft()
            self._size -= len(body)
            self._count(gzip.decompress(body) if compressed else body, now)
        return bool(self._kept)

    def _count(self, body: bytes, now: int) -> None:
        self.requests += 1
        self.first = self.first or now
        self.last = now
        at = body.find(MARK)
        while at >= 0:
            number = int(body[at + 1 : at + 11])
            client = body[at + 11 : at + 17]
            if self._seen[number]:
                self.twice += 1
            else:
                self._seen[number] = 1
                self.distinct += 1
                if number < self._newest.get(client, -1):
                    self.late += 1
                else:
                    self._newest[client] = number
                stamp = int(body[at + 17 : at + 37])
                if stamp:
                    self._took.append((now - stamp) / 1e6)
            at = body.find(MARK, at + 37)

    def report(self) -> dict[str, Any]:
        """Return the counts, and if the load stamps its events, their delays in milliseconds by percentile."""
        took = sorted(self._took)
        at = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
        return {
            "requests": self.requests,
            "distinct": self.distinct,
            "twice": self.twice,
            "late": self.late,
            "first": self.first,
            "last": self.last,
            "came": self.came,
            "took": {name: took[min(len(took) - 1, int(share * len(took)))] for name, share in at.items()} if took else {},
        }


class Connection:
    """
    One client's connection, whose requests are cut and answered.

    :param sock: a non-blocking socket.
    :param delay: nanoseconds that an answer takes.
    :param later: gets the time of each answer and its socket; all answers have the same delay.
    """

    def __init__(
        self, sock: socket.socket, tally: Tally, delay: int = 0, later: deque[tuple[int, socket.socket]] | None = None
    ) -> None:
        self._socket = sock
        self._tally = tally
        self._delay = delay
        self._later = later if later is not None else deque()
        self._data = bytearray()
        self._needed = 0

    def readable(self) -> bool:
        """
        Read and answer the requests that are there.

        :returns: whether the connection is still open.
        """
        while True:
            try:
                data = self._socket.recv(READ)
            except (BlockingIOError, ssl.SSLWantReadError):
                return True
            except OSError:
                return False
            if not data:
                return False
            self._data += data
            if len(self._data) >= self._needed:
                self._cut(time.monotonic_ns())
            if len(data) < READ and not isinstance(self._socket, ssl.SSLSocket):
                return True

    def _cut(self, now: int) -> None:
        data = self._data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            length = head.find(b"\r\ncontent-length:")
            if length < 0:
                raise SystemExit(
                    "benchmarks.receiver: a request without content-length, which this endpoint does not understand"
                )
            size = int(head[length + 17 :].split(b"\r\n", 1)[0])
            self._needed = end + 4 + size
            if len(data) < self._needed:
                return
            if self._delay:
                self._later.append((now + self._delay, self._socket))
            else:
                self._socket.send(ANSWER)
            self._tally.take(bytes(data[end + 4 : self._needed]), now, compressed=b"\r\ncontent-encoding: gzip" in head)
            del data[: self._needed]
            self._needed = 0


def serve(listener: socket.socket, tally: Tally, context: ssl.SSLContext | None, delay: float = 0.0) -> None:
    """
    Take requests until the end of standard input.

    :param context: for TLS.
    :param delay: seconds that an answer takes.
    """
    later: deque[tuple[int, socket.socket]] = deque()
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    open_: dict[int, tuple[socket.socket, Connection]] = {}
    while True:
        # Counting while requests come would make them wait.
        quiet = (time.monotonic_ns() - tally.came) / 1e9 > QUIET
        left = tally.count(AT_ONCE if quiet else 0)
        while later and later[0][0] <= time.monotonic_ns():
            with suppress(OSError):
                later.popleft()[1].send(ANSWER)
        wait = (0 if quiet else QUIET) if left else None
        if later:
            due = max((later[0][0] - time.monotonic_ns()) / 1e9, 0)
            wait = due if wait is None else min(wait, due)
        for descriptor, _ in poll.poll(wait):
            if (known := open_.get(descriptor)) is not None:
                sock, connection = known
                if not connection.readable():
                    del open_[descriptor]
                    sock.close()
            elif descriptor == listener.fileno():
                accepted = _accept(listener, context)
                if accepted is not None:
                    open_[accepted.fileno()] = accepted, Connection(accepted, tally, int(delay * 1e9), later)
                    poll.register(accepted, select.EPOLLIN)
            elif os.read(descriptor, 4096):
                print(json.dumps(tally.report()), flush=True)
            else:
                return


def _accept(listener: socket.socket, context: ssl.SSLContext | None) -> socket.socket | None:
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        # The client is quick, so doing one handshake after the other costs less than keeping a state for each.
        sock.settimeout(5)
        try:
            sock = context.wrap_socket(sock, server_side=True)
        except OSError:
            return None
    sock.settimeout(0)
    return sock


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receiver")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--certificate", help="a PEM file with key and certificate: speak TLS")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that an answer takes")
    options = parser.parse_args()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    print(json.dumps({"ready": True}), flush=True)
    serve(listener, Tally(options.events), context, options.delay)


if __name__ == "__main__":
    main()
