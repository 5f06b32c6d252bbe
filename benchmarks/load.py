"""
Generating the load: VerneMQ's side of the stream, as fast as the sidecar reads it or at a steady rate.

``python -m benchmarks.load --port 8890 --events 100000`` prints a line of JSON before it writes: when it begins, in nanoseconds
of the system's monotonic clock. It ends once all is written.

The frames of all clients have the same length, so each connection has one small block of them, in which only the differences
are overwritten. Each client's events go over one connection, with timestamps that grow.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time

from mqhooks.events import MatchedACL, Publish
from mqhooks.sources.sidecar.encode import varint
from mqhooks.tools.simulator import frame

BLOCK = 128 << 10
"""Most bytes of frames in a connection's block, unless one frame is longer."""

TICK = 0.001
"""Seconds between two looks at the clock when the rate is limited."""

MARK = b"#"
"""Begins the numbers in a payload; nothing else in a request has this character."""

SMALLEST = 10 + 6 + 20 + len(MARK)
"""Bytes of the shortest payload: the mark, the event's number, the client's and the time of the write."""

_NANOS = 1 << 28
_LOW = [bytes((value & 0x7F | 0x80, value >> 7 | 0x80)) for value in range(1 << 14)]


class Frames:
    """
    A block of frames in which the next events overwrite the previous ones.

    :param clients: the numbers of the clients, which take turns.
    :param size: bytes of a payload, at least :data:`SMALLEST`.
    """

    def __init__(self, clients: range, size: int) -> None:
        self._seconds = int(time.time())
        one = self._template(size)
        self.stride = len(one)
        self.capacity = max(1, min(len(clients), BLOCK // self.stride))
        self.block = bytearray(one * self.capacity)
        self._clients = clients
        self._turn = 0
        self._at_client = one.index(b"client-") + len(b"client-")
        self._at_numbers = one.index(MARK) + len(MARK)
        seconds = one.index(varint(self._seconds))
        self._at_seconds, self._at_nanos = seconds, seconds + 6

    def _template(self, size: int) -> bytes:
        message = Publish(
            timestamp=self._seconds * 1_000_000_000 + _NANOS,
            username="sensor",
            client_id="client-000000",
            qos=1,
            topic="sensors/hall/temperature",
            payload=(MARK + b"0" * (SMALLEST - len(MARK))).ljust(size, b"x"),
            matched_acl=MatchedACL("sensors", "sensors/+/temperature"),
            session_id="session-000000",
        )
        return frame(message)

    def write(self, number: int, count: int, stamp: int) -> memoryview:
        """
        Write the next events.

        :param number: number of the first event.
        :param count: number of events, at most ``capacity``.
        :param stamp: nanoseconds of the monotonic clock, for the receiver to subtract.
        :returns: their bytes, which are valid until the next call.
        """
        block, clients = self.block, self._clients
        numbers, client_at = self._at_numbers, self._at_client
        seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
        second = varint(seconds)
        # All timestamps are as long as the template's: the fraction of a second is scaled to numbers that take five bytes.
        nanos = _NANOS + nanos * 7 // 10
        tail = b"%020d" % stamp
        for index in range(count):
            start = index * self.stride
            client = b"%06d" % clients[self._turn]
            self._turn = (self._turn + 1) % len(clients)
            stamped = nanos + index
            at = start + self._at_seconds
            block[at : at + 5] = second
            at = start + self._at_nanos
            block[at : at + 5] = _LOW[stamped & 0x3FFF] + _LOW[stamped >> 14 & 0x3FFF] + bytes((stamped >> 28,))
            block[start + client_at : start + client_at + 6] = client
            at = start + numbers
            block[at : at + 36] = b"%010d%b%b" % (number + index, client, tail)
        return memoryview(block)[: count * self.stride]


class Link:
    """
    One connection, with the bytes that the other side has not taken yet.

    :param port: of 127.0.0.1.
    """

    def __init__(self, port: int, frames: Frames) -> None:
        self.frames = frames
        self.pending: memoryview | bytes = b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)

    def push(self) -> None:
        """Send as much as the socket takes."""
        try:
            self.pending = self.pending[self.socket.send(self.pending) :]
        except BlockingIOError:
            pass

    def append(self, data: memoryview) -> None:
        """Send data, after the bytes that wait."""
        self.pending = bytes(self.pending) + data
        self.push()

    def close(self) -> None:
        """Send the rest, and end the connection."""
        self.socket.settimeout(None)
        self.socket.sendall(self.pending)
        self.socket.close()


def flood(links: list[Link], events: int) -> None:
    """Write the events as fast as they are read."""
    selector = selectors.DefaultSelector()
    for link in links:
        selector.register(link.socket, selectors.EVENT_WRITE, link)
    number = 0
    while selector.get_map():
        for key, _ in selector.select():
            link = key.data
            if not link.pending:
                count = min(link.frames.capacity, events - number)
                if not count:
                    selector.unregister(link.socket)
                    continue
                link.pending = link.frames.write(number, count, 0)
                number += count
            link.push()
    selector.close()


def pace(links: list[Link], events: int, rate: float) -> None:
    """
    Write the events one by one, ``rate`` of them a second.

    An event that the other side does not take at once waits; its time is that of the first try.
    """
    began = time.monotonic()
    number = 0
    while number < events:
        due = min(events, int((time.monotonic() - began) * rate) + 1)
        while number < due:
            link = links[number % len(links)]
            link.append(link.frames.write(number, 1, time.monotonic_ns()))
            number += 1
        for link in links:
            if link.pending:
                link.push()
        time.sleep(TICK)


def main() -> None:
    """Read the command line, print the time of the beginning, and write the events."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--size", type=int, default=100, help="bytes of a payload")
    parser.add_argument("--rate", type=float, default=0.0, help="events a second; 0 is as fast as they are read")
    options = parser.parse_args()
    if options.size < SMALLEST:
        parser.error(f"--size: a payload has {SMALLEST} bytes at least")
    if not 1 <= options.connections <= options.clients <= 1_000_000:
        parser.error("--clients: each connection needs one at least, and there are 1000000 at most")
    links = [
        Link(options.port, Frames(range(index, options.clients, options.connections), options.size))
        for index in range(options.connections)
    ]
    print(json.dumps({"began": time.monotonic_ns()}), flush=True)
    if options.rate:
        pace(links, options.events, options.rate)
    else:
        flood(links, options.events)
    for link in links:
        link.close()


if __name__ == "__main__":
    main()
