"""
The server that a Python team would write for VerneMQ's gRPC: grpcio's asyncio server, a bounded queue, and 32 workers that post
with one aiohttp session. A call is answered when its event is in the queue.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import grpc

from benchmarks.peer import AT_ONCE, WAITING, Renderer, arguments
from mqhooks.pb.event_request_pb2 import EventRequest


async def relay(port: int, url: str, renderer: Renderer) -> None:
    """Relay until the process ends."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(WAITING)

    async def event(request: EventRequest, _: object) -> bytes:
        await queue.put(renderer.body(request.event.SerializeToString()))
        return b""

    async def work(session: aiohttp.ClientSession) -> None:
        while True:
            body = await queue.get()
            try:
                async with session.post(url, data=body, headers=renderer.headers(body)) as response:
                    await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                print(f"lost an event: {error!r}", file=sys.stderr)

    handler = grpc.unary_unary_rpc_method_handler(event, request_deserializer=EventRequest.FromString)
    service = grpc.method_handlers_generic_handler("webhook.v1beta1.PluginService", {"Event": handler})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:
        await server.start()
        await asyncio.gather(*(work(session) for _ in range(AT_ONCE)))


def main() -> None:
    """Read the command line and relay."""
    options = arguments("peer_grpc").parse_args()
    asyncio.run(relay(options.port, options.url, Renderer(options.secret)))


if __name__ == "__main__":
    main()
