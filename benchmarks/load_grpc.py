"""
Generating the load over gRPC: as many calls in flight as VerneMQ's client has, as fast as they are answered.

``python -m benchmarks.load_grpc --port 8893 --events 50000`` prints the line of JSON that :mod:`benchmarks.load` prints. It
ends at any answer with another status than 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import grpc

from benchmarks.load import Frames
from mqhooks.sources.sidecar.encode import varint

EVENT = "/webhook.v1beta1.PluginService/Event"

IN_FLIGHT = 100
"""Calls in flight: VerneMQ has 100 workers."""

CONNECTIONS = 10
CLIENTS = 1000


async def call(port: int, events: int, size: int) -> None:
    """Make the calls."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(CONNECTIONS)]
    calls = [channel.unary_unary(EVENT) for channel in channels]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    print(json.dumps({"began": time.monotonic_ns()}), flush=True)
    numbers = iter(range(events))

    async def work(worker: int) -> None:
        # Each worker has its own clients and one call at a time, so that each client's events come in order.
        frames = Frames(range(worker, CLIENTS, IN_FLIGHT), size)
        for number in numbers:
            frame = bytes(frames.write(number, 1, 0))[4:]
            await calls[worker % CONNECTIONS](b"\x0a" + varint(len(frame)) + frame, timeout=10)

    await asyncio.gather(*map(work, range(IN_FLIGHT)))
    for channel in channels:
        await channel.close()


def main() -> None:
    """Read the command line, and make the calls."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_grpc")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--size", type=int, default=100, help="bytes of a payload")
    options = parser.parse_args()
    asyncio.run(call(options.port, options.events, options.size))


if __name__ == "__main__":
    main()
